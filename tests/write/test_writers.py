"""Tables and records written on threads: in the order that a kill may cut, and as errors surface without."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llava_batch.errors import OutputConflict
from llava_batch.patience import Patience
from llava_batch.storage import Location
from llava_batch.write.committer import Committer
from llava_batch.write.ledger import Ledger
from llava_batch.write.scratch import is_memory
from llava_batch.write.writers import Writers
from tests.away import Store
from tests.outputs import EMPTY, RUN, answer, end, ledger_at, table, unit

UNITS = [unit(f"{n}") for n in range(8)]


def begun(store: Store, patience: Patience, **how: Any) -> Committer:
    ledger = ledger_at(Ledger(Location(store.fs, "out", "store://out"), "parquet", patience))
    ledger.begin(UNITS, EMPTY)
    return Committer(ledger, UNITS, EMPTY, RUN, writers=Writers(patience), **how)


def rows_of(*numbers: int) -> Any:
    return table(*(r for n in numbers for r in (answer(f"{n}", 0), end(f"{n}", 1))))


def test_all_units_are_written_by_the_end_and_each_is_told_once() -> None:
    store = Store()
    made = begun(store, Patience(5))
    told = [name for n in range(8) for name in made.add(rows_of(n))]
    made.close()
    told += made.add(rows_of())
    made.end()
    assert sorted(told) == [u.name for u in UNITS]
    assert made.tally.units == 8 and not made.tally.failed_units
    wrote = [path for path in store.objects if path.startswith("out/") and "_job" not in path]
    for u in UNITS:
        assert wrote.index(f"out/{u.name}.parquet") < wrote.index(f"out/_manifest/{u.name}.json")


def test_a_storage_that_stays_away_ends_the_run_with_its_own_error() -> None:
    store = Store()
    made = begun(store, Patience(0.01))
    store.down = lambda: True
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        for n in range(8):
            made.add(rows_of(n))
            time.sleep(0.1)
    made.end(cancel=True)
    assert made.tally.units == 0
    store.down = lambda: False
    assert not ledger_at(Ledger(Location(store.fs, "out", "x"), "parquet")).records


def test_a_stopped_run_waits_for_what_is_in_flight_but_for_no_storage_that_is_away() -> None:
    store = Store()
    made = begun(store, Patience(600))
    made.add(rows_of(0))
    made.keep_safe()
    made.end()
    assert made.tally.units == 1
    made = begun(store, Patience(600))
    store.down = lambda: True
    made.add(rows_of(1))
    started = time.monotonic()
    made.keep_safe()
    made.end()
    assert time.monotonic() - started < 60 and made.tally.units == 0


def test_the_folder_taken_by_another_run_is_asked_before_each_write() -> None:
    store, lost = Store(), threading.Event()

    def check() -> None:
        if lost.is_set():
            raise OutputConflict("another run")

    made = begun(store, Patience(5), check=check)
    lost.set()
    with pytest.raises(OutputConflict, match="another run"):
        for n in range(8):
            made.add(rows_of(n))
            time.sleep(0.1)
    made.end(cancel=True)
    assert not [path for path in store.objects if path.endswith(".parquet")]


def test_a_folder_in_memory_is_known_by_the_mount_that_it_lies_in(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"disk / ext4 rw 0 0\ntmpfs {tmp_path}/m tmpfs rw 0 0\nd {tmp_path}/m/d ext4 rw 0 0\n"
    )
    found = [is_memory(f"{tmp_path}/{name}", str(mounts)) for name in ("m/x", "mx", "m/d/x", ".")]
    assert found == [True, False, False, False]
