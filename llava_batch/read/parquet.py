"""A Parquet file → rows, one row group at a time, a bounded number of rows in memory.

The image column is found by type and name: `binary`, Hugging Face's `struct<bytes, path>`, or a
list of either. Keys are the key column's values, else row numbers in the whole file. A row group
that does not read gives a `shard_damaged` row for each of its rows, a value that does not, one for
its own row; a file without a footer, one. What says nothing of the file is raised: a storage that fails,
memory that is short.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import RowError, UsageError
from llava_batch.ids import name_in_unit
from llava_batch.read.exact import rows_of
from llava_batch.read.image_column import find_image_column, find_key_column
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Keys, Row, damaged, missing
from llava_batch.read.storage_failed import is_damage, stored
from llava_batch.unit import Unit

SPLIT_BYTES = 256 * 2**20
"""A Parquet file over this size is split into units of whole row groups of about this size."""

_ROW = "%row"
"""The mark of a row that is damaged: it goes by its number, for its key cannot be read."""

_ROWS_AT_ONCE = 64
_UNREADABLE = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)
"""What pyarrow raises for damage: bad pages, bad text, sizes and dates out of all bounds. Not only for
damage: see `is_damage`."""


class Parquet(Kind):
    """One file, one unit; a large one makes several, each a run of row groups."""

    extensions = frozenset({".parquet", ".parq", ".pq"})

    def units(self, whole: Unit, size: int) -> list[Unit]:
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
        except _UNREADABLE as error:
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
        except _UNREADABLE as error:
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
    except _UNREADABLE as error:
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
        image=image,
        names=_Names(key, retry),
        max_image_bytes=max_image_bytes,
    )
    for group in groups:
        start, done = sum(counts[:group]), 0
        try:
            for row in table.rows(group, start):
                yield row
                done += 1
        except _UNREADABLE as error:
            if not is_damage(error):
                raise
            what = f"row group {group} cannot be read: {error}"
            for number in _numbers(start + done, counts[group] - done, size):
                yield damaged(str(number), _ROW, what)


def _numbers(start: int, count: int, file_bytes: int) -> range:
    """The numbers of rows that are not read; the first alone where the footer claims more rows than
    there are bytes."""
    return range(start, start + (count if count <= file_bytes else 1))


class _Names:
    """What tells a row from all others: its key and mark, or its number in the file."""

    def __init__(self, column: str | None, retry: frozenset[str]) -> None:
        self._column = column
        self._retry = retry
        self._keys = Keys()

    def of(self, number: int, values: dict[str, Any]) -> tuple[str, str]:
        """Key and mark; those of before for a row that was damaged, whose key could not be read."""
        if name_in_unit(str(number), _ROW) in self._retry:
            return str(number), _ROW
        value = None if self._column is None else values.get(self._column)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        key = str(number if value is None else value)
        return key, self._keys.mark(key)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """An open file, and what is read of it."""

    reader: pq.ParquetFile
    columns: list[str]
    image: str
    names: _Names
    max_image_bytes: int

    def rows(self, group: int, start: int) -> Iterator[Row]:
        """The rows of one row group, `start` its first's number; raises `_UNREADABLE` where it stops
        reading."""
        batches = self.reader.iter_batches(_ROWS_AT_ONCE, [group], self.columns, use_threads=False)
        for number, values in enumerate(chain.from_iterable(map(_values, batches)), start):
            if isinstance(values, str):
                yield damaged(str(number), _ROW, values)
            else:
                yield self._row(*self.names.of(number, values), values)

    def _row(self, key: str, mark: str, values: dict[str, Any]) -> Row:
        cell = values.pop(self.image)
        cells = cell if isinstance(cell, list) else [cell]
        images: tuple[bytes, ...] = tuple(
            (c.get("bytes") if isinstance(c, dict) else c) or b"" for c in cells
        )
        if not images or not all(images):
            said = values.get("error_message")
            what = f"null or empty {self.image}" + (f": {said}" if said else "")
            return Row(key=key, mark=mark, columns=values, error=(RowError.IMAGE_MISSING, what))
        largest = max(map(len, images))
        if largest > self.max_image_bytes:
            what = f"{largest} bytes, the limit is {self.max_image_bytes} (--max-image-bytes)"
            return Row(key=key, mark=mark, columns=values, error=(RowError.IMAGE_TOO_LARGE, what))
        return Row(key=key, mark=mark, images=images, columns=values)


def _values(batch: pa.RecordBatch) -> list[dict[str, Any] | str]:
    """Each row's values, or what is wrong with a row of which one cannot be read."""
    try:
        return [*rows_of(batch)]
    except _UNREADABLE as error:
        if not is_damage(error):
            raise
        return [_values_of_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _values_of_row(row: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        return rows_of(row)[0]
    except _UNREADABLE as error:
        if not is_damage(error):
            raise
        return f"a value of this row cannot be read: {error}"
