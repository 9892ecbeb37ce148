"""A Parquet file → rows, one row group at a time, a few pages in memory (`pages`).

The image column is found by type and name: bytes, text that says where the image lies, Hugging Face's
`struct<bytes, path>`, or a list of these. Keys are the key column's values, else row numbers in the whole file. A row group
that does not read gives a `shard_damaged` row for each of its rows, a value that does not, one for
its own row; a file without a footer, one. What says nothing of the file is raised: a storage that fails,
memory that is short.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import UsageError
from llava_batch.read.image_column import find_image_column, find_key_column, names_images
from llava_batch.read.pages import batches, open_parquet
from llava_batch.read.reading import Fixed, Kind, Look, Reading
from llava_batch.read.row import Row, damaged, missing
from llava_batch.read.storage_failed import is_damage, stored
from llava_batch.read.table_rows import UNKEYED, UNREADABLE, Names, TableRows
from llava_batch.read.uris import refuse_the_web, root_of
from llava_batch.unit import Unit

SPLIT_BYTES = 256 * 2**20
SPLIT_ROWS = 10_000
"""A Parquet file over this size, or of more rows, is split into units of about so much: runs of row
groups, and runs of the rows of a group that has more of them and is itself no larger than SPLIT_BYTES.
To read such a run, the rows before it in its group are read over."""

_LEAST_BYTES = 10 * SPLIT_ROWS
"""A smaller file is not looked into: it has hardly more rows than SPLIT_ROWS."""


class Parquet(Kind):
    """One file, one unit; a large one makes several, each a run of row groups."""

    extensions = frozenset({".parquet", ".parq", ".pq"})
    looks_for_units = True

    def units(self, whole: Unit, size: int, fixed: Fixed) -> list[Unit]:
        by_rows = whole.rules >= 3
        if size <= (min(_LEAST_BYTES, SPLIT_BYTES) if by_rows else SPLIT_BYTES):
            return [whole]
        metadata = _metadata(whole)
        runs = _runs(metadata, SPLIT_ROWS if by_rows else None) if metadata else []
        if len(runs) < 2:
            return [whole]
        return [
            replace(whole, name=f"{whole.name}-{number:05d}", row_groups=groups, rows=rows)
            for number, (groups, rows) in enumerate(runs)
        ]

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        with unit.fs.open_input_file(unit.path) as file:
            yield from read_parquet(
                file,
                unit.shown,
                row_groups=unit.row_groups,
                rows=unit.rows,
                image_column=reading.image_column,
                key_column=reading.key_column,
                columns=reading.columns,
                root=root_of(unit, reading),
                max_image_bytes=reading.max_image_bytes,
                retry=unit.retry or frozenset(),
            )

    def refuse(self, unit: Unit, reading: Reading) -> None:
        schema = self.columns(unit)
        if len(schema) and self.count(unit):
            image = find_image_column(schema, reading.image_column, unit.shown)
            find_key_column(schema, reading.key_column, unit.shown)
            if names_images(schema.field(image).type):
                refuse_the_web(self.rows(unit, reading), reading, unit.shown)

    def columns(self, unit: Unit) -> pa.Schema:
        metadata = _metadata(unit)
        try:
            return metadata.schema.to_arrow_schema() if metadata else pa.schema([])
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            return pa.schema([])  # its rows will say so

    def count(self, unit: Unit) -> int | None:
        if unit.rows is not None:
            return unit.rows[1] - unit.rows[0]
        metadata = _metadata(unit)
        if metadata is None:
            return None
        groups = range(*(unit.row_groups or (0, metadata.num_row_groups)))
        counts: list[int] = [metadata.row_group(i).num_rows for i in groups]
        return sum(counts)

    def part(self, unit: Unit, look: Look, first: int, count: int) -> tuple[Unit, int]:
        if unit.rows is not None:
            begin = unit.rows[0] + first
            return replace(unit, rows=(begin, min(begin + count, unit.rows[1]))), 0
        metadata = _metadata(unit)
        groups = range(*(unit.row_groups or (0, metadata.num_row_groups if metadata else 0)))
        start = 0
        for group in groups:
            assert metadata is not None
            past = start + metadata.row_group(group).num_rows
            if first + count <= past and first >= start:
                rows = (first - start, first - start + count)
                return replace(unit, row_groups=(group, group + 1), rows=rows), 0
            if first < past:  # it reaches into the next
                return replace(unit, row_groups=(group, groups.stop)), first - start
            start = past
        return unit, first


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


Run = tuple[tuple[int, int], tuple[int, int] | None]
"""A run of row groups, and of one group perhaps some rows only: firsts, and ones past the last."""


def _runs(metadata: pq.FileMetaData, most_rows: int | None) -> list[Run]:
    """Runs of about SPLIT_BYTES or `most_rows` each, whichever is reached first."""
    runs: list[Run] = []
    start, size, count = 0, 0, 0
    for i in range(metadata.num_row_groups):
        group_size, group_rows = _group_bytes(metadata, i), metadata.row_group(i).num_rows
        if most_rows and group_rows > most_rows and group_size <= SPLIT_BYTES:
            runs += [((start, i), None)] if start < i else []
            runs += [((i, i + 1), part) for part in _slices(group_rows, most_rows)]
            start, size, count = i + 1, 0, 0
            continue
        size, count = size + group_size, count + group_rows
        if size >= SPLIT_BYTES or (most_rows and count >= most_rows):
            runs.append(((start, i + 1), None))
            start, size, count = i + 1, 0, 0
    return runs + (
        [((start, metadata.num_row_groups), None)] if start < metadata.num_row_groups else []
    )


def _group_bytes(metadata: pq.FileMetaData, group: int) -> int:
    columns = range(metadata.num_columns)
    return sum(metadata.row_group(group).column(c).total_compressed_size for c in columns)


def _slices(count: int, most: int) -> list[tuple[int, int]]:
    return [(first, min(first + most, count)) for first in range(0, count, most)]


def read_parquet(
    file: pa.NativeFile,
    shown: str,
    *,
    row_groups: tuple[int, int] | None,
    rows: tuple[int, int] | None = None,
    image_column: str | None,
    key_column: str | None,
    columns: tuple[str, ...],
    root: str,
    max_image_bytes: int,
    retry: frozenset[str] = frozenset(),
) -> Iterator[Row]:
    """The rows of `row_groups` (all where None), or `rows` of the one;
    `columns` are read beside the image if present, and
    rows named in `retry` that were damaged go by that name again.

    Raises:
        StorageFailed: the storage failed, as `read.stored` tells it from damage.
        MemoryError: memory was short; says nothing of the file.
    """
    size = file.size()
    try:
        reader = open_parquet(file)
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
            first, past = rows or (0, counts[group])
            for number in _numbers(sum(counts[:group]) + first, past - first, size):
                yield missing(str(number), str(error))
        return
    asked = dict.fromkeys((image, key, *columns, "error_message"))
    table = _Table(
        reader=reader,
        columns=[name for name in asked if name is not None and name in schema.names],
        rows_of=TableRows(
            image=image, names=Names(key, retry), max_image_bytes=max_image_bytes, root=root
        ),
    )
    for group in groups:
        first, past = rows or (0, counts[group])
        start, done = sum(counts[:group]) + first, 0
        try:
            for row in table.rows(group, start, first, past):
                yield row
                done += 1
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            what = f"row group {group} cannot be read: {error}"
            for number in _numbers(start + done, past - first - done, size):
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

    def rows(self, group: int, start: int, first: int, past: int) -> Iterator[Row]:
        """The rows `first` to before `past` of one row group, `start` the first's number in the file;
        raises what `is_damage` tells where it stops reading."""
        at = 0
        for batch in batches(self.reader, group, self.columns):
            wanted = batch.slice(max(first - at, 0), max(past - max(at, first), 0))
            at += batch.num_rows
            if wanted.num_rows:
                yield from self.rows_of.batch(wanted, start)
                start += wanted.num_rows
            if at >= past:
                return
