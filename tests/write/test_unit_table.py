"""Rows gathered from parts in any order, in chunks of bounded size, and as bytes and back."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.write import unit_table
from llava_batch.write.unit_table import decoded, encoded, gathered
from tests.outputs import answer, table


def rows(count: int, start: int = 0) -> pa.Table:
    return table(*(answer("a", n, text="x" * (n % 5)) for n in range(start, start + count)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 3000), st.data())
def test_rows_are_gathered_as_one_take_would_in_chunks_of_bounded_size(sizes, most, data):
    parts = [rows(size, sum(sizes[:n])) for n, size in enumerate(sizes)]
    whole = pa.concat_tables(parts)
    order = data.draw(st.permutations(range(whole.num_rows)))
    order = order[: data.draw(st.integers(0, len(order)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_table, "_CHUNK_BYTES", most)
        found = gathered(parts, np.array(order, np.int64))
    assert found.equals(whole.take(pa.array(order, pa.int64())))
    heaviest = max((whole.slice(n, 1).nbytes for n in range(whole.num_rows)), default=0)
    longest = max((part.nbytes for part in parts), default=0)
    for (
        batch
    ) in found.to_batches():  # a row's weight is its part's mean; a take adds some bytes a column
        assert batch.nbytes <= 1.1 * (most + max(heaviest, longest)) + 64


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_a_table_is_the_same_after_it_was_bytes(format, count):
    before = rows(count).replace_schema_metadata({"a": "b"})
    after = decoded(encoded(before, format).to_pybytes(), format)
    assert after is not None and after.equals(before)
    assert after.schema.metadata == {b"a": b"b"}


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_each_chunk_is_a_row_group_of_its_own(format):
    chunks = pa.concat_tables([rows(3), rows(2)])
    data = encoded(chunks, format)
    if format == "parquet":
        assert pa.parquet.ParquetFile(pa.BufferReader(data)).num_row_groups == 2
    else:
        assert pa.ipc.open_file(pa.BufferReader(data)).num_record_batches == 2
