"""A run that finds everything answered says so at once: no actor, no Ray, no torch, nothing written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FIXTURE = Path(__file__).parents[1] / "fixtures" / "answers_0_1_0"
TIME_NS = 1_700_000_000_000_000_000
HEAVY = ("torch", "ray", "transformers", "tokenizers")

CODE = """
import sys
from llava_batch.cli.jobs import app, exit_status
status = exit_status(app, sys.argv[1:], "llava-batch")
print(status, *(m for m in {heavy!r} if m in sys.modules))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Answers that lack nothing: the one unit that was left open is no longer in the input."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "input" / "later.tar").unlink()
    for path in (tmp_path / "input").rglob("*"):
        os.utime(path, ns=(TIME_NS, TIME_NS))
    return tmp_path


def again(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    places = ("--input", str(folder / "input"), "--output", str(folder / "captions"))
    return subprocess.run(
        [sys.executable, "-c", CODE.format(heavy=HEAVY), "caption", *places, *flags],
        capture_output=True, text=True, check=True,
    )  # fmt: skip


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_nothing_heavy_is_loaded_and_nothing_is_written(folder: Path) -> None:
    # It took 10 s of a core: Ray was started, torch and a tokenizer loaded, to say this.
    before = contents(folder / "captions")
    ran = again(folder)
    assert ran.stdout.split() == ["0"], ran.stdout
    assert "4 units were answered before and stand as they are." in ran.stderr
    assert "0 images" not in ran.stderr, "a speed of nothing"
    assert contents(folder / "captions") == before


def test_other_settings_are_refused_without_loading_anything_heavy_either(folder: Path) -> None:
    ran = again(folder, "--prompt", "Why?")
    assert ran.stdout.split() == ["2"], ran.stdout
    assert "--prompt was 'Describe the image.', is 'Why?'" in ran.stderr


def test_a_mistyped_path_a_missing_column_and_a_bad_question_file_are_told_before_ray(
    folder: Path,
) -> None:
    # A mistyped path took nine seconds.
    for flags, said in (
        (("--input", str(folder / "inptu")), "inptu: no such file or folder"),
        (("--prompt", "{captoin}", "--overwrite"), "has no column captoin"),
        (("--questions", str(folder / "none.jsonl"), "--overwrite"), "none.jsonl: no such"),
    ):
        ran = again(folder, *flags)
        assert ran.stdout.split() == ["2"], (flags, ran.stdout, ran.stderr)
        assert said in ran.stderr
