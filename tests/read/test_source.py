"""Units as read tasks: blocks of bounded size, behind the last of them the end row."""

from pathlib import Path

import pytest

from llava_batch.read.source import read_blocks
from tests.shards import put, reading, tar_bytes, units_of

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
