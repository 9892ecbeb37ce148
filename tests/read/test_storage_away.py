"""The input's storage goes away while a unit is read: it is read on from where it broke off."""

from dataclasses import replace
from pathlib import Path

import pytest

from llava_batch.read.source import read_blocks
from llava_batch.unit import Unit
from tests.away import Clock, Store
from tests.outputs import unit
from tests.shards import picture, put_parquet, reading, rows_of, tar_bytes

KEYS = [f"{n:03}" for n in range(40)]


def unit_of(store: Store, kind: str, tmp_path: Path) -> Unit:
    """A unit of 40 images in the store."""
    images = {f"{key}.png": picture(n) for n, key in enumerate(KEYS)}
    if kind == "tar":
        store.objects["in/a"] = tar_bytes(images)
    elif kind == "parquet":
        columns = {"key": KEYS, "png": list(images.values())}
        store.objects["in/a"] = put_parquet(tmp_path / "a.parquet", columns).read_bytes()
    else:
        store.objects |= {f"in/{name}": data for name, data in images.items()}
    members = tuple(images) if kind == "files" else ()
    path = "in" if kind == "files" else "in/a"
    return unit("a", kind=kind, fs=store.fs, path=path, members=members)


@pytest.mark.parametrize("kind", ["tar", "parquet", "files"])
@pytest.mark.parametrize("first_calls", [0, 1, 2, 5, 9])
def test_an_outage_of_minutes_costs_waiting_and_no_row(
    tmp_path: Path, kind: str, first_calls: int
) -> None:
    # Three tries in three seconds, and all that was answered of the unit was thrown away.
    store, clock = Store(), Clock()
    away = unit_of(store, kind, tmp_path)
    store.down = lambda: len(store.calls) > first_calls and clock.now < 400
    rows = rows_of(away, replace(reading(), patience=clock.patience()))
    assert [r["key"].removesuffix(".png") for r in rows] == KEYS
    assert clock.now >= 400 or len(store.calls) <= first_calls


def test_each_outage_has_the_whole_patience(tmp_path: Path) -> None:
    store, clock = Store(), Clock()
    away = unit_of(store, "files", tmp_path)
    outages = {40: 500.0, 120: 1000.0}  # the call at which each begins, and when it is over
    store.down = lambda: any(len(store.calls) > n and clock.now < t for n, t in outages.items())
    assert len(rows_of(away, replace(reading(), patience=clock.patience()))) == 40
    assert clock.now >= 1000


@pytest.mark.parametrize("kind", ["tar", "parquet", "files"])
def test_an_outage_longer_than_patience_leaves_the_unit_open(tmp_path: Path, kind: str) -> None:
    store, clock = Store(down=lambda: True), Clock()
    blocks = read_blocks(
        unit_of(store, kind, tmp_path), replace(reading(), patience=clock.patience())
    )
    (end,) = [r for block in blocks for r in block.to_pylist()]
    assert end["end"] and "NETWORK_CONNECTION" in end["error_message"]
    assert clock.now == 600
