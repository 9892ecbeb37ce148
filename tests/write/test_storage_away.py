"""The output's storage goes away while a run writes: what was answered waits for it."""

import json
import time
from pathlib import Path

import pytest

from llava_batch.storage import Location
from llava_batch.write import owner as ownership
from llava_batch.write.committer import Committer
from llava_batch.write.ledger import Ledger
from llava_batch.write.owner import Ownership
from tests.away import Clock, Store
from tests.outputs import EMPTY, RUN, answer, end, ledger_at, table, unit

UNITS = [unit("a"), unit("b")]
ROWS = table(*(r for u in UNITS for r in (answer(u.name, 0), end(u.name, 1))))


def begun(store: Store, clock: Clock, seconds: float = 600.0) -> tuple[Ledger, Committer]:
    out = Location(store.fs, "out", "store://out")
    ledger = ledger_at(Ledger(out, "parquet", clock.patience(seconds)))
    todo = [u for u in UNITS if not ledger.is_committed(u)]
    ledger.begin(todo, EMPTY)
    return ledger, Committer(ledger, todo, EMPTY, RUN)


@pytest.mark.parametrize("first_calls", range(0, 30, 3))
def test_an_outage_of_minutes_at_any_call_costs_waiting_and_no_answer(first_calls: int) -> None:
    # After three seconds the run ended, and all that its open units had been answered was lost.
    store, clock = Store(), Clock()
    store.down = lambda: len(store.calls) > first_calls and clock.now < 400
    begun(store, clock)[1].add(ROWS)
    assert {"out/a.parquet", "out/b.parquet"} <= store.objects.keys()
    store.down = lambda: False
    assert begun(store, clock)[0].records.keys() == {"a", "b"}


def test_an_outage_longer_than_patience_leaves_what_was_committed() -> None:
    store, clock = Store(), Clock()
    _, made = begun(store, clock, 100)
    store.down = lambda: "out/_manifest/a.json" in store.objects
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        made.add(ROWS)
    store.down = lambda: False
    assert begun(store, clock)[0].records.keys() == {"a"}


def test_a_run_that_is_stopped_while_it_waits_is_resumed() -> None:
    def stopped(now: float) -> None:
        raise KeyboardInterrupt

    store = Store()
    _, made = begun(store, Clock(stopped))
    store.down = lambda: "out/a.parquet" in store.objects
    with pytest.raises(KeyboardInterrupt):
        made.add(ROWS)
    store.down = lambda: False
    _, resumed = begun(store, Clock())
    assert resumed.add(ROWS) == ["b"]  # a was whole without its record: adopted
    assert begun(store, Clock())[0].records.keys() == {"a", "b"}


def test_late_heartbeats_end_nothing_and_go_on_when_the_storage_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT_S", 0.001)
    store = Store()
    out = Location(store.fs, "out", "store://out")

    def beat() -> float:
        return json.loads(store.objects["out/_manifest/_owner.json"])["beat"]

    with Ownership(out) as mine:
        store.down = lambda: True
        calls = len(store.calls)
        wait_until(lambda: len(store.calls) > calls + 5)
        before = beat()
        store.down = lambda: False
        wait_until(lambda: beat() > before)
        mine.check()
    assert "out/_manifest/_owner.json" not in store.objects


def wait_until(true) -> None:
    for _ in range(5000):
        if true():
            return
        time.sleep(0.002)
    raise AssertionError("it did not come to pass")


def test_what_ended_a_run_is_told_and_not_that_its_owner_file_stays() -> None:
    store = Store()
    with (
        pytest.raises(OSError, match="the disk is full"),
        Ownership(Location(store.fs, "out", "o")),
    ):
        store.down = lambda: True
        raise OSError("the disk is full")


def test_the_folder_is_given_back_when_its_storage_is_back(tmp_path: Path) -> None:
    store, clock = Store(), Clock()
    with Ownership(Location(store.fs, "out", "o"), clock.patience()):
        store.down = lambda: clock.now < 60
    assert store.objects == {}


def test_a_mistyped_place_is_refused_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    store, entered = Store(down=lambda: True), []
    monkeypatch.setattr(ownership, "BRIEF", Clock().patience(3))
    with pytest.raises(OSError), Ownership(Location(store.fs, "out", "o"), Clock().patience()):
        entered.append("in")
    assert entered == []
