"""A Parquet file by its pages: opened and read so that memory follows a page, not the row group.

pyarrow by itself fetches all column chunks of a row group before the first row. Here a column is read
ahead by `_AHEAD_BYTES`, and rows come in batches of about `_BATCH_BYTES`; a page, which its checksum and
compression make one thing, is in memory whole, and twice where it is compressed. How large a page is, the writer said: pyarrow
looks at a page's size every 1024 values by default, so that of images of 100 KB one has 100 MB (`write_batch_size`
is how often).
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.read.storage_failed import stored

_AHEAD_BYTES = 2 * 2**20
"""What one column asks of the storage at once; as few requests as this allows."""

_BATCH_ROWS = 64
_BATCH_BYTES = 2 * 2**20


def open_parquet(file: pa.NativeFile) -> pq.ParquetFile:
    """The Parquet file in `file`, to be read by `batches`.

    Raises:
        StorageFailed, or what pyarrow raises for damage: as `storage_failed` says.
    """
    return pq.ParquetFile(
        stored(file), page_checksum_verification=True, pre_buffer=False, buffer_size=_AHEAD_BYTES
    )


def batches(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The rows of one row group in order, a bounded number of bytes at once."""
    rows = _rows_at_once(parquet.metadata.row_group(group))
    yield from parquet.iter_batches(rows, [group], columns, use_threads=False)


def _rows_at_once(group: pq.RowGroupMetaData) -> int:
    """Rows of about `_BATCH_BYTES`, by what the footer says of all columns; it may say anything."""
    row_bytes: int = max(group.total_byte_size, 0) // max(group.num_rows, 1)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(row_bytes, 1)))
