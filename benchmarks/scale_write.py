"""What `scale.py` measures of the writing side: the committer, its driver's memory, and a start over a folder
of many units."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scale import held_mib, peak_mib
from slow_storage import SlowStorage

LATENCY_S, PUT_S = 0.025, 0.050
START_UNITS = (1_000, 10_000, 100_000)


def committer() -> dict[str, Any]:
    """Rows/s that the committer takes in batches of 32 rows of 1, 8 and 32 units, tables and parts written."""
    return {"committer_rows_per_s": [_committer_rows_per_s(units) for units in (1, 8, 32)]}


def _committer_rows_per_s(at_once: int, rows: int = 1_000, times: int = 3) -> int:
    from made_answers import batches, units_of

    from llava_batch.storage import locate

    units = units_of(32)
    made = [*batches([u.name for u in units], rows, at_once=at_once, batch_rows=32)]
    said = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            _commit(locate(folder), units, made)
            said.append(sum(batch.num_rows for batch in made) / (time.perf_counter() - started))
    return round(statistics.median(said))


def _commit(out: Any, units: list[Any], made: Any) -> None:
    """All batches through a committer as the pipeline has it."""
    from made_answers import EMPTY, RUN, ledger_at

    from llava_batch.write.committer import Committer
    from llava_batch.write.writers import Writers

    ledger = ledger_at(out)
    ledger.begin(units, EMPTY)
    committer = Committer(ledger, units, EMPTY, RUN, writers=Writers(ledger.patience))
    for batch in made:
        committer.add(batch)
    committer.close()
    committer.end()
    assert not committer.tally.failed_units, committer.tally.failed_units
    assert committer.tally.units == len(units)


def commits() -> dict[str, Any]:
    """Units of 100 rows committed a second where each PUT takes 50 ms."""
    from made_answers import batches, units_of

    storage = SlowStorage(latency_s=LATENCY_S, put_s=PUT_S)
    units = units_of(400)
    made = [*batches([u.name for u in units], 100, at_once=8, batch_rows=32)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        _commit(storage.location(folder), units, made)
        wall_s = time.perf_counter() - started
    return {
        "commits_per_s": round(len(units) / wall_s, 1),
        "requests_per_commit": round(storage.num_requests / len(units), 2),
    }


def driver() -> dict[str, Any]:
    """Memory beyond the idle driver's for one unit of 10^6 rows, which come in batches of 32, 8 at a time
    out of their order."""
    from made_answers import batches, units_of

    from llava_batch.storage import locate

    units, rows = units_of(1), 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        _commit(
            locate(f"{folder}/small"),
            units_of(1),
            batches(["000000"], 2000, at_once=1, batch_rows=32),
        )
        idle = held_mib()
        started = time.perf_counter()
        made = batches([units[0].name], rows, at_once=1, batch_rows=32)
        _commit(locate(f"{folder}/out"), units, _shuffled(made))
        wall_s = time.perf_counter() - started
    return {
        "driver_mib": round(peak_mib() - idle),
        "driver_idle_mib": round(idle),
        "driver_rows_per_s": round(rows / wall_s),
    }


def _shuffled(made: Any) -> Any:
    held = []
    for batch in made:
        held.append(batch)
        if len(held) == 8:
            yield from held[::-1]
            held = []
    yield from held


def start() -> dict[str, Any]:
    """A run with one unit to do over a folder of many, at 25 ms a request: seconds, requests of OUT, memory."""
    figures: dict[str, Any] = {
        "start_s": {},
        "start_requests": {},
        "start_mib": {},
        "start_first_s": {},
    }
    for count in START_UNITS:
        with tempfile.TemporaryDirectory() as folder:
            _here("lay", folder, str(count))
            first = _here(
                "start", folder
            )  # an older version's folder: its records are gathered now
            then = _here("start", folder)
        figures["start_first_s"][str(count)] = first["s"]
        for name in ("s", "requests", "mib"):
            figures[f"start_{name}"][str(count)] = then[name]
    return figures


def _here(verb: str, *args: str) -> dict[str, Any]:
    """This file's own `verb` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, verb, *args], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


def _job(folder: str) -> Any:
    from llava_batch.job import Job

    return Job(input=(f"slow://{folder}/in",), output=f"slow://{folder}/out", quiet=True)


def _lay(folder: str, count: str) -> dict[str, Any]:
    """An input of so many tars, and an output in which all but the last are answered, one record each."""
    from made_answers import lay_tars

    from llava_batch.driver.plan import make_plan
    from llava_batch.driver.settle import settle
    from llava_batch.write.record import Record

    SlowStorage(0.0).register()
    lay_tars(Path(folder) / "in", int(count))
    plan = make_plan(settle(_job(folder)))
    plan.ledger.begin([], plan.reading.keep)
    out = Path(folder) / "out"
    for place in {unit.name.rpartition("/")[0] for unit in plan.units}:
        (out / place).mkdir(parents=True, exist_ok=True)
        (out / "_manifest" / place).mkdir(parents=True, exist_ok=True)
    for unit in plan.units[:-1]:
        (out / f"{unit.name}.parquet").write_bytes(b"PAR1" * 25)
        record = Record(
            unit=unit.name, table=f"{unit.name}.parquet", table_bytes=100, table_hash="0" * 64,
            fingerprint=plan.ledger.fingerprint, input=unit.input, source=unit.source, rows=1000,
            images=1000, errors={"image_broken": 3}, rules=unit.rules,
        )  # fmt: skip
        (out / "_manifest" / f"{unit.name}.json").write_bytes(record.to_json())
    return {}


def _start(folder: str) -> dict[str, Any]:
    """From settling the job to the first writes, all that comes before a row is read."""
    started = time.perf_counter()
    from llava_batch.driver.plan import make_plan
    from llava_batch.driver.settle import settle
    from llava_batch.write.owner import Ownership
    from llava_batch.write.standing import end_move

    storage = SlowStorage(LATENCY_S)
    storage.register()
    out = storage.location(f"{folder}/out")
    with Ownership(out):
        plan = make_plan(settle(_job(folder)))
        assert len(plan.todo) == 1, len(plan.todo)
        plan.ledger.begin(plan.todo, plan.reading.keep, recasting=plan.recast)
        end_move(plan.ledger)
        wall_s = time.perf_counter() - started
        asked = dict(storage.requests)
        plan.ledger.rest()
    return {
        "s": round(wall_s, 2),
        "requests": sum(asked.values()),
        "mib": round(peak_mib()),
        "asked": asked,
    }


MEASURES = {"committer": committer, "commits": commits, "driver": driver, "start": start}

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    verb, *args = sys.argv[1:]
    print(json.dumps(_lay(*args) if verb == "lay" else _start(*args)))
