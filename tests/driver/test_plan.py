"""The plan: what is left to do in a folder, and why."""

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from llava_batch.driver import plan as plans
from llava_batch.driver.plan import make_plan
from llava_batch.driver.settle import settle
from llava_batch.errors import OutputConflict
from llava_batch.job import Job
from llava_batch.read.find import gather
from llava_batch.write.ledger import Ledger

FIXTURE = Path(__file__).parents[1] / "fixtures" / "answers_0_1_0"
TIME_NS = 1_700_000_000_000_000_000


def test_what_is_overwritten_has_not_changed_and_what_changed_has(tmp_path: Path) -> None:
    # Once every unit of a run with --overwrite was said to have changed.
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "input").rglob("*"):
        os.utime(path, ns=(TIME_NS, TIME_NS))
    for record in (tmp_path / "captions" / "_manifest").glob("*.json"):
        record.write_text(record.read_text().replace("/lake/input", str(tmp_path / "input")))
    job = Job(input=(str(tmp_path / "input"),), output=str(tmp_path / "captions"))
    again = make_plan(settle(job.but(prompt="Why?", overwrite=True)))
    assert (len(again.todo), again.work.num_changed) == (len(again.units), 0)
    os.utime(tmp_path / "input" / "plain.tar", ns=(TIME_NS + 10**9, TIME_NS + 10**9))
    plan = make_plan(settle(job.but(on_change="answer")))
    assert {unit.name for unit in plan.todo} == {"plain", "later"}
    assert plan.work.num_changed == 1


def test_the_input_is_listed_while_the_output_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a hundred thousand units either takes seconds, and neither needs the other.
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    both = threading.Barrier(2, timeout=30)

    def meeting(whole: Any) -> Any:
        def met(*args: Any, **options: Any) -> Any:
            both.wait()
            return whole(*args, **options)

        return met

    monkeypatch.setattr(plans, "gather", meeting(gather))
    monkeypatch.setattr(Ledger, "load", meeting(Ledger.load))
    job = Job(input=(str(tmp_path / "input"),), output=str(tmp_path / "captions"), overwrite=True)
    assert make_plan(settle(job)).todo


def test_what_the_output_refuses_does_not_wait_for_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    listed, over = threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        listed.wait(5)
        over.set()
        return gather(*args, **options)

    monkeypatch.setattr(plans, "gather", slow)
    job = Job(input=(str(tmp_path / "input"),), output=str(tmp_path / "captions"), prompt="Why?")
    try:
        with pytest.raises(OutputConflict, match="--prompt"):
            make_plan(settle(job))
        assert not over.is_set()
    finally:
        listed.set()
