"""Every command of the README is run, on small inputs of the names that it uses."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from llava_batch.cli.jobs import COMMANDS, app, exit_status
from llava_batch.demo.scenes import draw
from llava_batch.demo.shards import shard_scenes

README = Path(__file__).resolve().parent.parent / "README.md"
REPLACED = {"llava-hf/llava-1.5-7b-hf": "demo", "s3://lake/": "lake/", "/lake/": "lake/"}
"""What needs the network or a root folder, and what stands in for it here."""


def commands() -> list[list[str]]:
    """The README's indented commands that start a job or the console script, as arguments."""
    text = README.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)]
    found = []
    for line in lines:
        line = re.sub(r"^ray job submit .* -- ", "", line)
        line = re.sub(r"^.*\.venv/bin/python jobs/", "jobs/", line)
        for name, stand_in in REPLACED.items():
            line = line.replace(name, stand_in)
        if match := re.match(r"jobs/(\w+)\.py (.*)", line):
            found.append([match[1], *shlex.split(match[2], comments=True)])
        elif match := re.match(r"llava-batch (.*)", line):
            found.append(shlex.split(match[1], comments=True))
    return found


@pytest.fixture
def place(tmp_path: Path, demo_shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the inputs that the README speaks of."""
    for folder in ("shards", "lake/shards", "lake/new", "lake/shards/dt=2026-11-02"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(demo_shards[1], tmp_path / folder)
    questions = []
    for folder in ("my-photos", "images"):
        (tmp_path / folder).mkdir()
        for number, scene in enumerate(shard_scenes(count=2, seed=3)):
            name = f"{number}.png"
            draw(scene, short_side=112).save(tmp_path / folder / name)
            questions.append({"question_id": number, "image": name, "text": "How many objects?"})
    lines = (json.dumps(question) for question in questions[:2])
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    (tmp_path / "photos.csv").write_text("path\nmy-photos/0.png\nmy-photos/1.png\n")
    images = [(tmp_path / "my-photos" / f"{n}.png").read_bytes() for n in range(2)]
    write_deltalake(tmp_path / "lake/photos", pa.table({"id": ["a", "b"], "image": images}))
    (tmp_path / "schema.json").write_text('{"enum": ["star", "circle", "square"]}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_shows_commands_of_every_kind():
    assert {"caption", "vqa", "instruct", "inspect", "report", "show"} <= {c[0] for c in commands()}


@pytest.mark.usefixtures("local_ray", "place")
def test_every_command_of_the_readme_runs():
    published = ""
    for number, command in enumerate(commands()):
        arguments = list(command)
        if command[0] in COMMANDS:
            # Each into a folder of its own, but for the first, which the commands after it look at.
            place = arguments.index("--output") + 1
            arguments[place] = arguments[place] if number < 3 else f"out-{number}"
            whole = "--export" in arguments or "--publish" in arguments
            arguments += [] if whole else ["--limit", "2"]
            published = arguments[place] if "--publish" in arguments else published
        if command[0] == "forget":
            arguments[1] = published
        assert exit_status(app, arguments, "llava-batch") == 0, command
