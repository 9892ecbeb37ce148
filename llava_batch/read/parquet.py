"""A Parquet file → rows, one row group at a time, a bounded number of rows in memory.

The image column is found by type and name: `binary`, Hugging Face's `struct<bytes, path>`, or a
list of either. Keys are the key column's values, else row numbers in the whole file. A row group
that does not read gives a `shard_damaged` row for each of its rows, a value that does not, one for
its own row; a file without a footer, one. What says nothing of the file is raised: a storage that fails,
memory that is short.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import UsageError
from llava_batch.read.image_column import find_image_column, find_key_column
from llava_batch.read.reading import Fixed, Kind, Reading
from llava_batch.read.row import Row, damaged, missing
from llava_batch.read.storage_failed import is_damage, stored
from llava_batch.read.table_rows import UNKEYED, UNREADABLE, Names, TableRows
from llava_batch.unit import Unit

SPLIT_BYTES = 256 * 2**20
"""A Parquet file over this size is split into units of whole row groups of about this size."""

_ROWS_AT_ONCE = 64


class Parquet(Kind):
    """One file, one unit; a large one makes several, each a run of row groups."""

    extensions = frozenset({".parquet", ".parq", ".pq"})

    def units(self, whole: Unit, size: int, fixed: Fixed) -> list[Unit]:
        if size <= SPLIT_BYTES:
            return [whole]
        metadata = _metadata(whole)
        runs = _row_group_runs(metadata) if metadata else []
        if len(runs) < 2:
            return [whole]
        return [
            replace(whole, name=f"{whole.name}-{number:05d}", row_groups=run)
            for number, run in enumerate(runs)
        ]

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        with unit.fs.open_input_file(unit.path) as file:
            yield from read_parquet(
                file,
                unit.shown,
                row_groups=unit.row_groups,
                image_column=reading.image_column,
                key_column=reading.key_column,
                columns=reading.columns,
                max_image_bytes=reading.max_image_bytes,
                retry=unit.retry or frozenset(),
            )

    def refuse(self, unit: Unit, reading: Reading) -> None:
        schema = self.columns(unit)
        if len(schema) and self.count(unit):
            find_image_column(schema, reading.image_column, unit.shown)
            find_key_column(schema, reading.key_column, unit.shown)

    def columns(self, unit: Unit) -> pa.Schema:
        metadata = _metadata(unit)
        try:
            return metadata.schema.to_arrow_schema() if metadata else pa.schema([])
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            return pa.schema([])  # its rows will say so

    def count(self, unit: Unit) -> int | None:
        metadata = _metadata(unit)
        if metadata is None:
            return None
        groups = range(*(unit.row_groups or (0, metadata.num_row_groups)))
        counts: list[int] = [metadata.row_group(i).num_rows for i in groups]
        return sum(counts)


def _metadata(unit: Unit) -> pq.FileMetaData | None:
    """The file's footer, or None where it is damaged: the reader will make the row in error.

    Raises:
        StorageFailed, MemoryError: it could not be looked at.
    """
    with unit.fs.open_input_file(unit.path) as file:
        try:
            return pq.read_metadata(stored(file))
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            return None


def _row_group_runs(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """Runs of row groups of about SPLIT_BYTES each."""
    runs, start, size = [], 0, 0
    for i in range(metadata.num_row_groups):
        size += sum(
            metadata.row_group(i).column(c).total_compressed_size
            for c in range(metadata.num_columns)
        )
        if size >= SPLIT_BYTES:
            runs.append((start, i + 1))
            start, size = i + 1, 0
    return runs + ([(start, metadata.num_row_groups)] if start < metadata.num_row_groups else [])


def read_parquet(
    file: pa.NativeFile,
    shown: str,
    *,
    row_groups: tuple[int, int] | None,
    image_column: str | None,
    key_column: str | None,
    columns: tuple[str, ...],
    max_image_bytes: int,
    retry: frozenset[str] = frozenset(),
) -> Iterator[Row]:
    """The rows of `row_groups` (all where None); `columns` are read beside the image if present, and
    rows named in `retry` that were damaged go by that name again.

    Raises:
        StorageFailed: the storage failed, as `read.stored` tells it from damage.
        MemoryError: memory was short; says nothing of the file.
    """
    size = file.size()
    try:
        reader = pq.ParquetFile(stored(file), page_checksum_verification=True)
        schema = reader.schema_arrow
        counts = [reader.metadata.row_group(i).num_rows for i in range(reader.num_row_groups)]
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        yield damaged("", "%damaged-1", f"no Parquet file can be read here: {error}")
        return
    groups = range(*(row_groups or (0, len(counts))))
    try:
        image = find_image_column(schema, image_column, shown)
        key = find_key_column(schema, key_column, shown)
    except UsageError as error:
        for group in groups:
            for number in _numbers(sum(counts[:group]), counts[group], size):
                yield missing(str(number), str(error))
        return
    asked = dict.fromkeys((image, key, *columns, "error_message"))
    table = _Table(
        reader=reader,
        columns=[name for name in asked if name is not None and name in schema.names],
        rows_of=TableRows(image=image, names=Names(key, retry), max_image_bytes=max_image_bytes),
    )
    for group in groups:
        start, done = sum(counts[:group]), 0
        try:
            for row in table.rows(group, start):
                yield row
                done += 1
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            what = f"row group {group} cannot be read: {error}"
            for number in _numbers(start + done, counts[group] - done, size):
                yield damaged(str(number), UNKEYED, what)


def _numbers(start: int, count: int, file_bytes: int) -> range:
    """The numbers of rows that are not read; the first alone where the footer claims more rows than
    there are bytes."""
    return range(start, start + (count if count <= file_bytes else 1))


@dataclass(frozen=True, kw_only=True)
class _Table:
    """An open file, and what is read of it."""

    reader: pq.ParquetFile
    columns: list[str]
    rows_of: TableRows

    def rows(self, group: int, start: int) -> Iterator[Row]:
        """The rows of one row group, `start` its first's number; raises what `is_damage` tells where it
        stops reading."""
        batches = self.reader.iter_batches(_ROWS_AT_ONCE, [group], self.columns, use_threads=False)
        for batch in batches:
            yield from self.rows_of.batch(batch, start)
            start += batch.num_rows
