"""The examples run as they say."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.answer_folder import bad, good, write_folder

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *args: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_rows_to_review_lists_what_was_cut_and_then_the_least_confident(tmp_path: Path) -> None:
    rows = [
        good("sure", "a", mean_logprob=-0.1),
        good("unsure", "b, c", mean_logprob=-2.0),
        good("cut", "d", mean_logprob=-0.2, finish_reason="length"),
        bad("broken", "image_missing", "gone"),
    ]
    out = write_folder(tmp_path / "out", rows, run={}, thumbnails=["00000/sure"])
    listed = list(csv.DictReader(run("rows_to_review.py", out).splitlines()))
    assert [row["id"] for row in listed] == ["00000/cut", "00000/unsure", "00000/sure"]
    assert listed[1]["answer"] == "b, c"
    assert len(run("rows_to_review.py", out, "1").splitlines()) == 2


def test_compare_prompts_writes_one_page_about_two_runs(
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import compare_prompts

    compare_prompts.main(None, str(tmp_path))
    page = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert page == tmp_path / "plain" / "_compare-counting.html"
    assert "rows stand in both folders" in page.read_text(encoding="utf-8")


def test_compare_prompts_says_what_it_takes() -> None:
    # `--help` was taken for a folder, and ended in a stack trace.
    assert run("compare_prompts.py", "--help").startswith("usage: compare_prompts.py")
