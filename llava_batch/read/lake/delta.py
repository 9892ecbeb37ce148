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
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import UsageError
from llava_batch.read.lake.delta_columns import DeltaFile, conformed_batches
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
from llava_batch.read.pages import open_parquet
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Row, damaged
from llava_batch.read.storage_failed import is_damage
from llava_batch.read.table_rows import UNREADABLE
from llava_batch.read.unit_name import unit_name
from llava_batch.unit import TableFile, Unit, pack_rows, unpack_rows

_MODE = "delta.columnMapping.mode"


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
        files = _files(pa.table(table.get_add_actions()))
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
                how=DeltaFile(
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


def _files(actions: pa.Table) -> list[dict[str, Any]]:
    """What the log says of each data file, without the statistics of its columns."""
    names = ("path", "size_bytes", "num_records", "partition")
    wanted = [name for name in names if name in actions.schema.names]
    return sorted(actions.select(wanted).to_pylist(), key=lambda file: file["path"])


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
        source=str(file["size_bytes"]),  # a data file is never written again; its log entry may be
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
                parquet = open_parquet(opened)
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
                parquet = open_parquet(opened)
                for group in range(parquet.num_row_groups):
                    count = parquet.metadata.row_group(group).num_rows
                    for batch in conformed_batches(parquet, group, count, file.how, [name]):
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
    file: DeltaFile,
    wanted: Wanted,
) -> Iterator[Row]:
    """The rows of one row group that are not deleted; where it stops reading, the rest in error."""
    done = 0
    try:
        for batch in conformed_batches(parquet, group, len(numbers), file, wanted.columns):
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
