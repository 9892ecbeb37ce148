"""How a run begins: its folder is its own before anybody looks into it, and again nobody's if refused."""

import errno
import os
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_batch import pipeline
from llava_batch.driver import cluster, local_paths
from llava_batch.driver.plan import make_plan
from llava_batch.driver.settle import settle
from llava_batch.driver.sizing import Sizing
from llava_batch.errors import OutputConflict, RunFailed, UsageError
from llava_batch.job import Job
from llava_batch.patience import BRIEF
from llava_batch.pipeline import run
from llava_batch.write.committer import Committer
from tests.outputs import EMPTY, RUN, answer, end, table
from tests.shards import picture, put, tar_bytes


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Sizing(workers=1, prepare_workers=1, gpus_per_worker=0.0, threads_per_worker=1)
    monkeypatch.setattr(cluster, "connected", lambda **how: nullcontext(True))
    monkeypatch.setattr(pipeline, "refuse_beforehand", lambda settled, **how: None)
    monkeypatch.setattr(local_paths, "refuse_local_paths", lambda job: None)
    monkeypatch.setattr(cluster, "size_up", lambda job, alone: size)


def job(tmp_path: Path, **more) -> Job:
    return Job(input=("shards",), output=str(tmp_path / "new" / "out"), quiet=True, **more)


def files(tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))


def test_the_folder_is_owned_before_it_is_looked_into_and_nothing_is_left_of_a_refused_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two runs that began together both read the empty ledger, and both answered everything.
    seen = []

    def refusing(*arguments, **named):
        seen.append(files(tmp_path))
        raise UsageError("--input x: nothing there")

    monkeypatch.setattr(pipeline, "make_plan", refusing)
    with pytest.raises(UsageError, match="nothing there"):
        run(job(tmp_path))
    assert seen == [["new", "new/out", "new/out/_manifest", "new/out/_manifest/_owner.json"]]
    assert files(tmp_path) == []


def test_a_second_run_is_refused_while_the_first_still_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(*arguments, **named):
        monkeypatch.setattr(pipeline, "make_plan", lambda *a, **n: pytest.fail("it looked too"))
        with pytest.raises(OutputConflict, match="a run is writing there"):
            run(job(tmp_path))
        raise UsageError("enough")

    monkeypatch.setattr(pipeline, "make_plan", second)
    with pytest.raises(UsageError, match="enough"):
        run(job(tmp_path))


def test_a_dry_run_takes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*arguments, **named):
        assert files(tmp_path) == []
        raise UsageError("enough")

    monkeypatch.setattr(pipeline, "make_plan", refusing)
    with pytest.raises(UsageError, match="enough"):
        run(job(tmp_path, dry_run=True))


def test_what_stood_in_the_folder_stays_when_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new" / "out").mkdir(parents=True)

    def refusing(*arguments, **named):
        raise UsageError("enough")

    monkeypatch.setattr(pipeline, "make_plan", refusing)
    with pytest.raises(UsageError):
        run(job(tmp_path))
    assert files(tmp_path) == ["new", "new/out"]


@pytest.mark.parametrize(
    ("token", "advice"), [("", "check the paths"), ("t", "are a session's and may have ended")]
)
@pytest.mark.parametrize(("place", "told"), [("make_plan", UsageError), ("_run", RunFailed)])
def test_a_storage_that_refuses_ends_the_run_with_what_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, advice: str, place: str, told: type
) -> None:
    def refused(*arguments, **named):
        raise OSError("AWS Error ACCESS_DENIED during PutObject operation: no.\nRequest ID: 7")

    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    found = SimpleNamespace(todo=["a unit"], settled=None, checkpoint=None)
    monkeypatch.setattr(pipeline, "make_plan", lambda *a, **n: found)
    monkeypatch.setattr(pipeline, "on_machines", lambda plan, **n: plan)
    monkeypatch.setattr(pipeline, "tell_left_out", lambda plan: None)
    monkeypatch.setattr(pipeline, "tell_start", lambda plan: None)
    monkeypatch.setattr(pipeline, "refuse_what_is_too_long", lambda *a: None)
    monkeypatch.setattr(pipeline, place, refused)
    with pytest.raises(told, match=advice) as error:
        run(job(tmp_path))
    assert "ACCESS_DENIED" in str(error.value) and "\n" not in str(error.value)


def test_an_overwrite_that_was_killed_at_its_very_end_is_over_when_it_is_run_again(
    tmp_path: Path,
) -> None:
    # Its mark stayed for ever, and every later --overwrite took itself for the rest of that one.
    put(tmp_path / "in" / "a.tar", tar_bytes({"0.png": picture()}))
    again = Job(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), overwrite=True)
    plan = make_plan(settle(again), BRIEF)
    plan.ledger.begin(plan.todo, EMPTY)
    made = Committer(plan.ledger, plan.todo, EMPTY, RUN)
    assert made.add(table(answer("a", 0), end("a", 1))) == ["a"]
    assert run(again.but(quiet=True)).run["units_done_before"] == 1
    assert [unit.name for unit in make_plan(settle(again), BRIEF).todo] == ["a"]


@pytest.mark.parametrize("in_the_way", ["new", "new/out/_manifest"])
def test_a_file_in_the_outputs_way_is_the_reason_that_is_given(
    tmp_path: Path, in_the_way: str
) -> None:
    # It said that "the storage refused", and sent one to look at credentials and endpoints.
    put(tmp_path / in_the_way, b"a file")
    with pytest.raises(UsageError) as error:
        run(job(tmp_path))
    out = tmp_path / "new" / "out"
    assert str(error.value) == (
        f"--output {out}: cannot be written to (Not a directory); give another folder, or "
        "permission to write there"
    )


def test_a_read_only_output_is_refused_before_it_is_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr(os, "makedirs", refusing)
    monkeypatch.setattr(pipeline, "make_plan", lambda *a, **n: pytest.fail("it looked"))
    with pytest.raises(UsageError, match=r"out: cannot be written to \(Read-only file system\)"):
        run(job(tmp_path))


def test_a_folder_in_the_place_of_a_file_of_the_manifest_is_told_at_once(tmp_path: Path) -> None:
    # It was taken for a storage that does not answer, and waited for ten minutes.
    (tmp_path / "new" / "out" / "_manifest" / "_job.json").mkdir(parents=True)
    with pytest.raises(UsageError, match="is a directory"):
        run(job(tmp_path, storage_patience=5.0))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "1 unit to answer; starting Ray, then the model\n"),
        ({"dry_run": True}, "1 unit to answer; starting Ray to look at the machine\n"),
        ({"quiet": True}, ""),
    ],
)
def test_what_is_to_be_done_is_said_before_ray_is_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: dict[str, Any],
    said: str,
) -> None:
    # A newcomer looked at nothing for nine seconds; of a dry run, until its end.
    put(tmp_path / "in" / "a.tar", tar_bytes({"0.png": picture()}))

    def starting(**how: Any) -> None:
        assert capsys.readouterr().err == said
        raise UsageError("enough")

    monkeypatch.setattr(cluster, "connected", starting)
    with pytest.raises(UsageError, match="enough"):
        run(Job(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), **how))


def test_answers_are_handed_out_before_the_next_ones_are_there(
    local_ray: None, tmp_path: Path
) -> None:
    import ray

    taken = tmp_path / "taken"

    def one_behind_the_other(row: dict[str, Any]) -> dict[str, Any]:
        end = time.monotonic() + 60
        while row["id"] and not taken.exists():
            if time.monotonic() > end:
                raise TimeoutError("the first batch was not handed out")
            time.sleep(0.05)
        return row

    rows = ray.data.range(2, override_num_blocks=2).map(one_behind_the_other)
    batches = pipeline.as_they_come(rows)
    assert next(batches)["id"].to_pylist() == [0]
    taken.touch()
    assert [batch["id"].to_pylist() for batch in batches] == [[1]]
