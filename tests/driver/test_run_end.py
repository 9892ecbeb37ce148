"""What a run's end asks for, and what it leaves undone where it was stopped."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_batch.driver import summary
from llava_batch.driver.heard import Heard
from llava_batch.driver.nodes import Change
from llava_batch.driver.sizing import Sizing
from llava_batch.job import Job
from llava_batch.read.find import Inputs
from llava_batch.write.changes import Work
from llava_batch.write.committer import Committer
from tests.outputs import EMPTY, RUN, answer, end, ledger_of, table, unit

SIZING = Sizing(workers=1, prepare_workers=1, gpus_per_worker=0.0, threads_per_worker=1)


def ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, **job: Any
) -> tuple[dict[str, Any], float]:
    """What `_run.json` says at the end of a run, and how long its shared state was waited for."""
    waits: list[float] = []

    def hear(shared: Any, *, wait_s: float) -> Heard:
        waits.append(wait_s)
        return Heard(missing="some figures")

    monkeypatch.setattr(summary, "hear", hear)
    ledger = ledger_of(tmp_path)
    ledger.begin([unit("a")], EMPTY)
    made = Committer(ledger, [unit("a")], EMPTY, RUN)
    made.add(table(answer("a", 0), end("a", 1)))
    plan: Any = SimpleNamespace(ledger=ledger, job=Job(output=str(tmp_path), **job),
                                outlook=dict, work=Work(todo=[], num_done=0, num_changed=0, num_kept=0),
                                inputs=Inputs(units=[], left_out={}, skipped={}))  # fmt: skip
    joined: Any = SimpleNamespace(count_unjoined=lambda: 7)
    gone = Change(node="9f", address="10.0.0.9", at=datetime.now(UTC))
    nodes: Any = SimpleNamespace(look=lambda: None, lost=[gone], joined=[])
    summary.summarise(
        plan, SIZING, made, [], time.time(), status=status, joined=joined, nodes=nodes
    )
    return json.loads((tmp_path / "_run.json").read_text()), waits[0]


def test_a_stopped_run_reads_nothing_and_waits_a_second(tmp_path, monkeypatch) -> None:
    # It read all of the output again, within the three seconds that it had to live.
    said, waited_s = ended(tmp_path, monkeypatch, "stopped")
    assert said["run"]["questions_without_image"] is None
    assert waited_s <= 1


def test_a_complete_run_counts_and_tells_what_its_figures_lack(tmp_path, monkeypatch) -> None:
    said, waited_s = ended(tmp_path, monkeypatch, "complete")
    assert said["run"]["questions_without_image"] == 7
    assert said["notes"] == ["some figures"]
    # Of a lost node's rows it is not known whether there were any, which is not 0.
    assert said["nodes"]["lost"][0]["rows_again"] is None
    assert waited_s == 30


def test_a_limited_run_does_not_say_which_questions_lack_an_image(tmp_path, monkeypatch) -> None:
    said, _ = ended(tmp_path, monkeypatch, "complete", limit=1)
    assert said["run"]["questions_without_image"] is None
