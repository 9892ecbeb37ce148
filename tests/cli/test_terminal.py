"""What a run says before and after itself, and when it is the demo."""

from pathlib import Path

import pytest

from llava_batch import run
from llava_batch.cli.jobs import app, exit_status
from llava_batch.errors import UsageError
from llava_batch.job import Job


@pytest.mark.parametrize("command", ["caption", "vqa", "instruct"])
@pytest.mark.parametrize(
    ("given", "asked_for"),
    [
        (["--input", "photos"], "--output: not given beside --input photos; name a folder"),
        (["--output", "out"], "--input: not given beside --output out; name shards"),
    ],
)
def test_a_place_that_was_forgotten_is_asked_for_and_nothing_is_drawn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    given: list[str],
    asked_for: str,
) -> None:
    # Once shapes were drawn beside OUT and captioned, and photographs went into the demo's folder.
    monkeypatch.chdir(tmp_path)
    question = ["--question", "Is it red?"] if command == "vqa" else []
    assert exit_status(app, [command, *given, *question], "llava-batch") == 2
    assert capsys.readouterr().err.startswith(f"llava-batch: {asked_for}")
    assert list(tmp_path.iterdir()) == []


def test_with_neither_place_it_is_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_batch.cli.terminal import placed

    def write_shards(folder: Path, *, count: int, seed: int) -> list[Path]:
        folder.mkdir(parents=True)
        (folder / "shapes-00000.tar").write_bytes(b"")
        return [folder / "shapes-00000.tar"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llava_batch.demo.shards.write_shards", write_shards)
    shards = (str(tmp_path / "demo-out" / "shards" / "shapes-00000.tar"),)
    for name in ("answers", "instruct"):  # the second time they are there
        job = placed(Job(seed=3), demo=name)
        assert job == Job(seed=3, input=shards, output=f"demo-out/{name}")


@pytest.mark.parametrize("job", [Job(), Job(input=("photos",)), Job(output="out")])
def test_a_job_of_python_s_names_its_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not given"):
        run(job)
    assert list(tmp_path.iterdir()) == []
