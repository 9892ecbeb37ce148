"""Forgetting rows of a Delta table: deleted in a file that stands, gone with one that does not, or moved."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from llava_batch.driver.forgetting import delete, lost
from llava_batch.ids import printable
from llava_batch.read.exact import rows_of
from llava_batch.read.lake.keys import are_among, key_hashes
from llava_batch.read.table_rows import Names
from llava_batch.storage import locate
from llava_batch.write.reopen import reopen
from tests.nights import answers, read_again
from tests.write.test_standing import Lake

pytest.importorskip("deltalake")


def forget(lake: Lake) -> tuple[int, list[str]]:
    """How many answers were deleted, and of which units nothing could be told."""
    found = lost(reopen(locate(str(lake.out))), [str(lake.log.folder)])
    delete(reopen(locate(str(lake.out))), found)
    return found.rows, found.moved


@pytest.mark.parametrize("key_column", [None, "name"])
def test_a_row_deleted_in_a_file_that_stands_is_forgotten_alone(tmp_path: Path, key_column) -> None:
    lake = Lake(tmp_path, key_column)
    lake.log.commit(lake.put("a", 1, 2, 3))
    lake.night()
    before = answers(lake.out)
    vector = lake.log.in_file([1])
    lake.log.commit(lake.log.remove("a.parquet"), lake.log.add("a.parquet", vector=vector))
    assert forget(lake) == (1, [])
    gone = "t/k2" if key_column else "t/a/1"
    assert answers(lake.out) == {ident: a for ident, a in before.items() if ident != gone}
    assert forget(lake) == (0, [])
    assert lake.night().todo == []
    lake.log.commit(lake.log.remove("a.parquet", vector), lake.log.add("a.parquet"))
    lake.night(on_change="answer")
    assert answers(lake.out) == before, "what is back is answered again"


def test_with_keys_rows_that_were_moved_stay_and_those_that_went_go(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.log.commit(lake.put("a", 1, 2, 3), lake.put("b", 4))
    lake.night()
    lake.log.commit(
        lake.log.remove("a.parquet"), lake.log.remove("b.parquet"), lake.put("c", 1, 3, 5)
    )
    assert forget(lake) == (2, [])
    assert answers(lake.out) == lake.keys(1, 3)
    lake.night()
    assert (lake.copied, lake.bought) == (2, 1)
    assert answers(lake.out) == lake.keys(1, 3, 5)
    assert forget(lake) == (0, [])


def test_without_keys_a_vanished_file_is_forgotten_once_nothing_is_left_to_answer(
    tmp_path: Path,
) -> None:
    lake = Lake(tmp_path, None)
    lake.log.commit(lake.put("a", 1, 2), lake.put("b", 3))
    lake.night()
    lake.log.commit(lake.log.remove("a.parquet"), lake.put("c", 1, 2))
    assert forget(lake) == (0, ["t/a"]), "they may stand in the new file"
    lake.night(on_change="keep")
    assert forget(lake) == (2, [])
    assert {*answers(lake.out)} == {"t/b/0", "t/c/0", "t/c/1"}
    lake.log.commit(lake.log.remove("b.parquet"), lake.log.remove("c.parquet"))
    assert forget(lake) == (3, []) and answers(lake.out) == {}
    assert read_again(lake.night()) == {}


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", "é#~%"]),
        pa.array([b"a\xff", b""], pa.binary()),
        pa.array([1, -2], pa.int64()),
        pa.array([0.1, 1e300]),
        pa.array([True, False]),
        pa.array([Decimal("1.50")]),
        pa.array([datetime(2026, 11, 1, tzinfo=UTC)], pa.timestamp("us", "UTC")),
        pa.array([1, 10**15 + 1], pa.timestamp("ns")),
        pa.array([1, 10**9 + 1], pa.time64("ns")),
    ],
    ids=lambda values: str(values.type),
)
def test_a_key_is_the_same_text_to_the_reader_and_to_who_looks_for_it(values: pa.Array) -> None:
    # Where they differ, `forget` takes every row for one that is gone.
    names = Names("key", frozenset())
    rows = rows_of(pa.record_batch([values], names=["key"]))
    keys = [printable(names.of(number, row)[0]) for number, row in enumerate(rows)]
    hashes = key_hashes([None], "key", lambda unit, column: iter([values]))  # type: ignore[list-item]
    assert are_among(keys, hashes).all()
