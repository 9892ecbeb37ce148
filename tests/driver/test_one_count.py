"""Rows in error are counted once: the terminal, `_run.json`, the report and `show` say the same number."""

import io
import json
import re
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_batch.answers.folder import open_answers
from llava_batch.cli.show import show
from llava_batch.cli.terminal import result_lines
from llava_batch.driver import summary
from llava_batch.driver.heard import Heard
from llava_batch.driver.sizing import Sizing
from llava_batch.driver.summary import Summary
from llava_batch.job import Job
from llava_batch.read.find import Inputs
from llava_batch.report import write_report
from llava_batch.report.folder_view import Side
from llava_batch.unit import Unit
from llava_batch.write.changes import Work
from llava_batch.write.committer import Committer
from tests.outputs import EMPTY, RUN, answer, end, ledger_of, table, unit

SIZING = Sizing(workers=1, prepare_workers=1, gpus_per_worker=0.0, threads_per_worker=1)


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "hear", lambda shared, *, wait_s: Heard())


def night(out: Path, units: list[Unit], broken: set[int], *, limit: int | None = None) -> Summary:
    """A run that answers four images of each unit, those of the numbers `broken` in error."""
    ledger = ledger_of(out)
    ledger.begin(units, EMPTY)
    made = Committer(ledger, units, EMPTY, RUN)
    for one in units:
        rows = [
            answer(one.name, n, error="image_missing" if n in broken else None) for n in range(4)
        ]
        made.add(table(*rows, end(one.name, 4)))
    plan: Any = SimpleNamespace(
        ledger=ledger, job=Job(output=str(out), limit=limit), outlook=lambda: {"notes": []},
        work=Work(todo=units, num_done=0, num_changed=0, num_kept=0),
        inputs=Inputs(units=units, left_out={}, skipped={}),
    )  # fmt: skip
    return summary.summarise(plan, SIZING, made, [], time.time(), status="complete")


def counted(out: Path, ended: Summary) -> dict[str, tuple[int, int]]:
    """(rows, rows in error) as each place says them."""
    totals = json.loads((out / "_run.json").read_text())["totals"]
    said = re.search(
        r"holds (\d+) rows? .*, (\d+) of them in error", "\n".join(result_lines(ended))
    )
    counts = Side(open_answers(str(out)), seed=0).counts
    shown = []
    for errors in (False, True):
        with redirect_stdout(io.StringIO()) as told:
            show(str(out), errors=errors, num_rows=1000)
        shown.append(len(re.findall(r"[abc]/\d", told.getvalue())))
    return {
        "terminal": (int(said[1]), int(said[2])) if said else (-1, -1),
        "_run.json": (totals["rows"], totals["rows"] - totals["ok"]),
        "_run.json by code": (totals["rows"], sum(totals["errors"].values())),
        "report": (counts.rows, counts.num_errors),
        "show": (shown[0], shown[1]),
    }


def test_after_a_run_and_another_one(tmp_path: Path) -> None:
    ended = night(tmp_path, [unit("a")], {1})
    assert set(counted(tmp_path, ended).values()) == {(4, 1)}
    ended = night(tmp_path, [unit("b")], {1, 2, 3})
    assert set(counted(tmp_path, ended).values()) == {(8, 4)}


def test_a_limited_run_counts_what_it_wrote_beside_what_was_there(tmp_path: Path) -> None:
    # "0 answers in 0 units" stood beside a table of ten.
    ended = night(tmp_path, [unit("a", limit=4)], {0}, limit=4)
    assert set(counted(tmp_path, ended).values()) == {(4, 1)}
    assert ended.totals["units"] == ended.totals["units_limited"] == 1
    assert "1 unit not complete (--limit); a run without it answers all again." in result_lines(
        ended
    )
    night(tmp_path, [unit("b")], {1, 2})
    ended = night(tmp_path, [unit("c", limit=4)], {3}, limit=4)
    assert set(counted(tmp_path, ended).values()) == {(8, 3)}
    assert (ended.totals["units"], ended.totals["units_limited"]) == (2, 1)


def test_the_report_of_a_limited_run_says_so(tmp_path: Path) -> None:
    night(tmp_path, [unit("a", limit=4)], set(), limit=4)
    page = Path(write_report([str(tmp_path)])).read_text()
    assert "The last run was limited to 4 images (<code>--limit</code>)" in page
    night(tmp_path, [unit("a")], set())
    assert "limited to" not in Path(write_report([str(tmp_path)])).read_text()
