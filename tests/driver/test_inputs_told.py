"""What a run says of its input: what is left out, and what an empty folder is."""

from pathlib import Path

import pytest

from llava_batch.cli.jobs import app, exit_status
from llava_batch.driver.plan import make_plan
from llava_batch.driver.progress import tell_left_out
from llava_batch.driver.settle import settle
from llava_batch.driver.summary import summarise
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.pipeline import run
from tests.shards import picture, put


def caption(folder: Path, **how) -> Job:
    return Job(input=(str(folder / "in"),), output=str(folder / "out"), **how)


def test_a_folder_that_is_there_and_empty_is_nothing_to_do(tmp_path, capsys):
    # It was refused, with exit status 2.
    (tmp_path / "in").mkdir()
    summary = run(caption(tmp_path, keep=("caption",)))
    assert (summary.status, summary.run["rows"]) == ("complete", 0)
    assert not (tmp_path / "out").exists()
    args = ["caption", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert exit_status(app, args, "llava-batch") == 0
    said = capsys.readouterr().err
    assert "_report.html" not in said
    # "out holds 0 rows in 0 units", of a folder that is not there.
    assert (
        said.startswith("Nothing to answer: there is no image in --input") and said.count("\n") == 1
    )


def test_files_but_none_that_is_read_are_refused(tmp_path, capsys):
    put(tmp_path / "in" / "a.csv", b"x")
    args = ["caption", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert exit_status(app, args, "llava-batch") == 2
    assert "no image, tar or Parquet file there, but 1 .csv" in capsys.readouterr().err
    with pytest.raises(UsageError):
        run(caption(tmp_path))


def test_what_is_left_out_is_said_once_and_stands_in_the_runs_figures(tmp_path, capsys):
    # Nothing told of it.
    folder = tmp_path / "in"
    put(folder / "a.png", picture())
    for number, kind in enumerate("zip csv arrow xlsx doc html db bin dat csv".split()):
        put(folder / f"{number}.{kind}", b"x")
    put(folder / "_SUCCESS", b"")
    plan = make_plan(settle(caption(tmp_path)))
    summary = summarise(plan, None, None, [], 0.0, status="dry run")
    assert summary.run["left_out"][".csv"] == 2 and len(summary.run["left_out"]) == 9
    assert summary.run["skipped"] == {"names that begin with _ or .": 1}
    tell_left_out(plan)
    said = capsys.readouterr().err
    assert said.count("Left out, since they are not read: 2 .csv, 1 .") == 1
    assert ", 1 more kind." in said
    tell_left_out(make_plan(settle(caption(tmp_path, quiet=True))))
    assert capsys.readouterr().err == ""
