"""Units as read tasks: blocks of bounded size, behind the last of them the end row."""

from pathlib import Path

import pytest

from llava_batch.read import source
from llava_batch.read.source import UnitSource, read_blocks
from llava_batch.tables import unpacked
from tests.shards import picture, put, reading, tar_bytes, units_of

MIB = 2**20


@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [
        ([MIB] * 20, [8, 8, 4 + 1]),
        ([100] * 70, [32, 32, 6 + 1]),
        ([100, 20 * MIB, 100, 100], [1, 1, 2 + 1]),
        ([100] * 32, [32 + 1]),
        ([], [1]),
    ],
    ids=["bytes", "rows", "one that is larger", "just full", "nothing"],
)
def test_a_block_is_bounded_in_rows_and_in_bytes(
    tmp_path: Path, sizes: list[int], blocks: list[int]
) -> None:
    # 32 images of 30 MB were one batch of a gigabyte.
    for number, size in enumerate(sizes):
        put(tmp_path / "in" / f"{number:03}.jpg", bytes([1]) * size)
    empty = put(tmp_path / "a.tar", tar_bytes({}))
    (unit,) = units_of(tmp_path / "in" if sizes else empty)
    assert [block.num_rows for block in read_blocks(unit, reading())] == blocks
    *_, end = [row for block in read_blocks(unit, reading()) for row in block.to_pylist()]
    assert end["end"] and end["ordinal"] == len(sizes)


def test_small_units_are_read_by_one_task_and_share_blocks(tmp_path: Path, monkeypatch) -> None:
    # Of files of three rows each, a batch of the engine's would have held three rows.
    for number in range(40):
        images = {f"{n}.png": picture(n) for n in range(3)}
        put(tmp_path / "in" / f"{number:02}.tar", tar_bytes(images))
    put(tmp_path / "in" / "large.tar", tar_bytes({"a.png": bytes(9 * MIB), "b.png": picture()}))
    monkeypatch.setattr(source, "_read_carefully", lambda unit, how, shared: read_blocks(unit, how))
    units = units_of(tmp_path / "in")
    tasks = UnitSource(units, reading(), None).get_read_tasks(1)
    given = [[unpacked(batch) for batch in task()] for task in tasks]
    assert [[b.num_rows for b in blocks] for blocks in given] == [[40] * 3 + [8], [32], [1, 2]]
    assert len(tasks) == 3
    rows = [row for blocks in given for block in blocks for row in block.to_pylist()]
    by_unit = {unit.name: [r for r in rows if r["unit"] == unit.name] for unit in units}
    for unit in units:
        alone = [row for block in read_blocks(unit, reading()) for row in block.to_pylist()]
        assert by_unit[unit.name] == alone
