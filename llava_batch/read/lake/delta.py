"""A Delta table: its log is deltalake's to read, its data files are read here, one a unit.

deltalake's own scan neither says which file a row is of nor keeps their order, so that no row could be named
by its place: of it are taken the files of the snapshot, their partition values, the schema and which
rows are deleted (its deletion vectors, decoded); the files are read by pyarrow. Columns go by their
physical names (column mapping by name), one that a file does not have is null, partition columns
have the file's value, all of the table's types. Refused by name: column mapping by id, files outside the
table's folder.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_batch.errors import UsageError
from llava_batch.read.lake.recognise import DELTA
from llava_batch.read.lake.table import (
    AsOf,
    Opened,
    Place,
    Wanted,
    live_rows,
    num_live,
    object_store_options,
    of_table,
    refuse_columns,
    table_uri,
    the_library,
)
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Row, damaged
from llava_batch.read.storage_failed import is_damage, stored
from llava_batch.read.table_rows import UNREADABLE
from llava_batch.read.unit_name import unit_name
from llava_batch.unit import TableFile, Unit, pack_rows, unpack_rows

_MODE = "delta.columnMapping.mode"
_PHYSICAL = "delta.columnMapping.physicalName"
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class _File:
    """What a data file is read with."""

    path: str
    schema: pa.Schema
    """The table's, in the order of its columns."""
    fields: tuple[dict[str, Any], ...]
    """Its fields as the log has them, physical names among them."""
    partition: dict[str, Any]


def open_table(place: Place, as_of: AsOf) -> Opened:
    """The table's data files as of one version, each a unit.

    Raises:
        UsageError: deltalake is not installed or cannot read the table; what is refused by name.
    """
    with the_library(place):
        from deltalake import DeltaTable

        table = DeltaTable(
            table_uri(place.at),
            version=as_of.snapshot,
            storage_options=object_store_options(place.at.fs),
        )
        mode = table.metadata().configuration.get(_MODE, "none")
        schema = pa.schema(table.schema().to_arrow())
        fields = tuple(json.loads(table.schema().to_json())["fields"])
        files = sorted(pa.table(table.get_add_actions()).to_pylist(), key=lambda f: f["path"])
        vectors = pa.RecordBatchReader.from_stream(table.deletion_vectors())
        partitions = tuple(table.metadata().partition_columns)
    _refuse_what_is_not_read(place, mode, [file["path"] for file in files])
    deleted = _deleted(place, vectors, table.table_uri, {file["path"] for file in files})
    units = [
        _unit(
            place,
            file,
            TableFile(
                table=place.name,
                snapshot=table.version(),
                keyed=as_of.key_column is not None,
                num_rows=file["num_records"],
                deleted=deleted.get(file["path"], b""),
                partitions=partitions,
                how=_File(
                    path=f"{place.at.path}/{unquote(file['path'])}",
                    schema=schema,
                    fields=fields,
                    partition=file.get("partition") or {},
                ),
            ),
        )
        for file in files
    ]
    return Opened(place=place, snapshot=table.version(), units=units)


def _refuse_what_is_not_read(place: Place, mode: str, paths: list[str]) -> None:
    if mode not in ("none", "name"):
        raise UsageError(
            f"--input {place.at.shown}: its columns are mapped by {mode}, which is not read; copy the "
            "table to one mapped by name"
        )
    outside = next((p for p in paths if "://" in p or p.startswith("/")), None)
    if outside is not None:
        raise UsageError(
            f"--input {place.at.shown}: its data file {outside} lies outside the table's folder (a shallow "
            "clone), which is not read; copy the table whole"
        )


def _deleted(
    place: Place, vectors: pa.RecordBatchReader, root: str, paths: set[str]
) -> dict[str, bytes]:
    """The deleted rows of each file that has some, by its path in the log."""
    found = {}
    for batch in vectors:
        for uri, kept in zip(batch["filepath"].to_pylist(), batch["selection_vector"], strict=True):
            path = uri.removeprefix(root.rstrip("/") + "/")
            if path not in paths:  # else its deleted rows would be read
                raise UsageError(
                    f"--input {place.at.shown}: there are deletions of {path}, which is no data file of "
                    "the table; this version of deltalake names files in another way, take 1.6"
                )
            mask = kept.values.to_numpy(zero_copy_only=False)
            found[path] = pack_rows(np.flatnonzero(~mask))
    return found


def _unit(place: Place, file: dict[str, Any], of_table: TableFile) -> Unit:
    path = unquote(file["path"])
    return Unit(
        name=f"{place.name}/{unit_name(os.path.splitext(path)[0])}",
        kind=DELTA,
        path=place.at.path,
        shown=f"{place.at.shown}/{path}",
        fs=place.at.fs,
        source=f"{file['size_bytes']}-{file['modification_time']}",
        of_table=of_table,
    )


class Delta(Kind):
    """Data files of Delta tables."""

    extensions = frozenset()

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        file = of_table(unit)
        wanted = Wanted.of(file.how.schema, unit, reading)
        deleted = unpack_rows(file.deleted)
        with unit.fs.open_input_file(file.how.path) as opened:
            try:
                parquet = pq.ParquetFile(stored(opened), page_checksum_verification=True)
                counts = [
                    parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)
                ]
            except UNREADABLE as error:
                if not is_damage(error):
                    raise
                key = wanted.names.of_damaged(0)[0].removesuffix("0")
                yield damaged(key, "%damaged-1", f"no Parquet file can be read here: {error}")
                return
            start = 0
            for group, count in enumerate(counts):
                numbers = np.arange(start, start + count)
                yield from _group(parquet, group, numbers, deleted, file.how, wanted)
                start += count

    def column(self, unit: Unit, name: str) -> Iterator[pa.Array]:
        """One column of the rows that are not deleted and can be read."""
        file = of_table(unit)
        deleted = unpack_rows(file.deleted)
        with unit.fs.open_input_file(file.how.path) as opened:
            start = 0
            try:
                parquet = pq.ParquetFile(stored(opened), page_checksum_verification=True)
                for group in range(parquet.num_row_groups):
                    count = parquet.metadata.row_group(group).num_rows
                    for batch in _conformed_batches(parquet, group, count, file.how, [name]):
                        numbers = np.arange(start, start + batch.num_rows)
                        yield batch[name].filter(pa.array(live_rows(numbers, deleted)))
                        start += batch.num_rows
            except UNREADABLE as error:
                if not is_damage(error):
                    raise  # else its rows will be in error, under names of their own

    def refuse(self, unit: Unit, reading: Reading) -> None:
        refuse_columns(self, unit, reading)

    def columns(self, unit: Unit) -> pa.Schema:
        schema: pa.Schema = of_table(unit).how.schema
        return schema

    def count(self, unit: Unit) -> int | None:
        return num_live(unit)


def _group(
    parquet: pq.ParquetFile,
    group: int,
    numbers: np.ndarray,
    deleted: np.ndarray,
    file: _File,
    wanted: Wanted,
) -> Iterator[Row]:
    """The rows of one row group that are not deleted; where it stops reading, the rest in error."""
    done = 0
    try:
        for batch in _conformed_batches(parquet, group, len(numbers), file, wanted.columns):
            some = numbers[done : done + batch.num_rows]
            live = live_rows(some, deleted)
            yield from wanted.rows_of.numbered(batch.filter(pa.array(live)), some[live].tolist())
            done += batch.num_rows
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        rest = numbers[done:]
        for number in rest[live_rows(rest, deleted)].tolist():
            what = f"row group {group} cannot be read: {error}"
            yield damaged(*wanted.names.of_damaged(number), what)


def _conformed_batches(
    parquet: pq.ParquetFile, group: int, num_rows: int, file: _File, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """The group's batches with the table's columns, deleted rows among them."""
    fields = {f["name"]: f for f in file.fields}
    wanted = [_physical(fields[name]) for name in columns if name not in file.partition]
    there = [name for name in wanted if name in parquet.schema_arrow.names]
    for batch in _batches(parquet, group, there, num_rows):
        yield _conformed(batch, file, fields, columns)


def _batches(
    parquet: pq.ParquetFile, group: int, columns: list[str], num_rows: int
) -> Iterator[pa.RecordBatch]:
    """The group's batches; of a file without any of the columns, empty ones of as many rows."""
    if columns:
        yield from parquet.iter_batches(_ROWS_AT_ONCE, [group], columns, use_threads=False)
        return
    nothing = pa.RecordBatch.from_struct_array(pa.array([{}] * num_rows, pa.struct([])))
    yield from (nothing.slice(i, _ROWS_AT_ONCE) for i in range(0, num_rows, _ROWS_AT_ONCE))


def _conformed(
    batch: pa.RecordBatch, file: _File, fields: dict[str, dict[str, Any]], columns: list[str]
) -> pa.RecordBatch:
    """The batch with the table's names and types: partition columns put in, absent ones null."""
    arrays = []
    for name in columns:
        kind, physical = file.schema.field(name).type, _physical(fields[name])
        if name in file.partition:
            arrays.append(pa.repeat(pa.scalar(file.partition[name], kind), batch.num_rows))
        elif physical in batch.schema.names:
            arrays.append(_as_table_has_it(batch[physical], fields[name]["type"], kind))
        else:
            arrays.append(pa.nulls(batch.num_rows, kind))
    return pa.RecordBatch.from_arrays(arrays, names=columns)


def _as_table_has_it(array: pa.Array, said: Any, kind: pa.DataType) -> pa.Array:
    """`array` as `kind`, fields of structs by their physical names; `said` is the type in the log."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_struct(kind):
        children = []
        for field, inner in zip(said["fields"], kind, strict=True):
            index = array.type.get_field_index(_physical(field))
            there = pc.struct_field(array, index) if index >= 0 else None
            children.append(
                pa.nulls(len(array), inner.type)
                if there is None
                else _as_table_has_it(there, field["type"], inner.type)
            )
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    if pa.types.is_list(kind):
        # From offsets, so that lists that are null or sliced stay what they are.
        values = _as_table_has_it(pc.list_flatten(array), said["elementType"], kind.value_type)
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
    # Spark's INT96 reads as nanoseconds, of which the table keeps microseconds.
    return array.cast(kind, safe=not pa.types.is_timestamp(kind))


def _physical(field: dict[str, Any]) -> str:
    name: str = field["metadata"].get(_PHYSICAL, field["name"])
    return name
