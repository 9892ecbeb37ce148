"""What a command loads: no more than it needs, or every look at a folder costs seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_batch.cli.estimate import estimate_and_tell
from llava_batch.driver.estimate import Estimate, nothing_left
from llava_batch.job import Job
from llava_batch.prompts.presets import PRESETS
from llava_batch.score.annotations import BENCHMARKS
from tests.answer_folder import bad, good, write_folder
from tests.shards import picture, put

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "transformers", "tokenizers", "huggingface_hub", "ray", "pandas",
         "duckdb", "datasets", "webdataset", "PIL", "scipy", "openpyxl"}  # fmt: skip
ARROW = {"pyarrow", "numpy"}
PAGES = {"jinja2", "markupsafe"}
TELL = "import sys\nprint('LOADED', *{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)\n"


def loaded(code: str, *arguments: str) -> set[str]:
    """The top-level modules in memory at the end of `code`, which may end by itself."""
    code = f"import atexit\natexit.register(lambda: exec({TELL!r}))\n{code}"
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.rpartition("LOADED")[2].split())


def by_command(*arguments: str) -> set[str]:
    return loaded("from llava_batch.cli import main\nmain()", *arguments)


@pytest.fixture
def out(tmp_path: Path) -> str:
    rows = [good("a", "A cat."), bad("b", "image_missing", "it is gone")]
    return write_folder(tmp_path / "out", rows, run={}, thumbnails=["00000/a"])


@pytest.mark.parametrize("command", [[], ["caption"], ["vqa"], ["instruct"], ["score"], ["report"]])
def test_help_loads_nothing_but_the_command_line(command: list[str]) -> None:
    assert not by_command(*command, "--help") & (HEAVY | ARROW | PAGES)


@pytest.mark.parametrize("job", ["caption", "vqa", "instruct", "score"])
def test_a_job_s_help_loads_nothing_but_the_command_line(job: str) -> None:
    code = f"import runpy\nrunpy.run_path('jobs/{job}.py', run_name='__main__')"
    assert not loaded(code, "--help") & (HEAVY | ARROW | PAGES)


@pytest.mark.parametrize("command", [["schema", "answers"], ["schema", "answers", "--json"]])
def test_schema_loads_no_library_of_models_or_tables(command: list[str]) -> None:
    assert not by_command(*command) & (HEAVY | PAGES)


@pytest.mark.parametrize("command", [["show"], ["show", "--errors"]])
def test_show_loads_arrow_alone(out: str, command: list[str]) -> None:
    assert not by_command(*command, out) & (HEAVY | PAGES)


@pytest.mark.parametrize("num_folders", [1, 2])
def test_report_loads_arrow_and_the_template_alone(out: str, num_folders: int) -> None:
    assert not by_command("report", *[out] * num_folders) & HEAVY


def test_score_loads_arrow_alone(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"question_id": "1", "text": "yes"}) + "\n")
    arguments = ["--answers", str(answers), "--benchmark", "gqa", "--export", f"{tmp_path}/x.json"]
    assert not by_command("score", *arguments) & (HEAVY | PAGES)


def test_estimate_loads_no_ray_before_ray_is_told_what_to_keep_to_itself(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png", picture(1))
    stop = "import sys\nfrom llava_batch.driver import cluster\ncluster.connected = sys.exit\n"
    command = ["estimate", "caption", "--input", str(tmp_path / "in")]
    run = f"{stop}from llava_batch.cli import main\nmain()"
    assert "ray" not in loaded(run, *command)


def test_the_json_of_an_estimate_has_stdout_to_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def estimated(*_: object, **__: object) -> Estimate:
        print("(raylet) what Ray says of its actors")
        return nothing_left(3, None)

    monkeypatch.setattr("llava_batch.cli.estimate.estimate", estimated)
    estimate_and_tell(Job(), pilot=1, pilot_seed=0, price_per_hour=None, as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out)["images_answered"] == 3
    assert "what Ray says" in said.err


def test_the_package_is_run_as_the_console_script_is() -> None:
    command = [sys.executable, "-m", "llava_batch.cli", "show", "no-such-folder"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 2
    assert ran.stderr.startswith("llava-batch: no-such-folder: holds no answers")


def test_every_benchmark_that_is_scored_has_its_preset_and_stands_in_the_help() -> None:
    assert set(PRESETS) == set(BENCHMARKS)
