"""An Iceberg table, read by pyiceberg, a data file at a time: each is a unit, named by its path below the
table's `data/`.

Found by its folder (the newest metadata there) or by its name in one of pyiceberg's catalogs. Position
deletes and deletion vectors are applied by pyiceberg's scan; which rows they are is read once in the driver
too, so that rows keep their numbers in the file and that what the scan leaves out is what was meant. A
reader holds one data file at a time in memory, as pyiceberg gives it. Refused by name: equality deletes, which
pyiceberg does not apply, and deletes in other files than Parquet and Puffin.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from llava_batch.errors import LlavaBatchError, UsageError
from llava_batch.read.lake.iceberg_deletes import deleted_rows, refuse_equality_deletes
from llava_batch.read.lake.recognise import CATALOG, ICEBERG, METADATA_FILE
from llava_batch.read.lake.table import (
    AsOf,
    Opened,
    Place,
    Wanted,
    live_rows,
    num_live,
    of_table,
    refuse_columns,
    s3_options,
    table_uri,
    the_library,
)
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Row
from llava_batch.read.unit_name import unit_name
from llava_batch.storage import Location, read_bytes
from llava_batch.unit import TableFile, Unit, unpack_rows

_ROWS_AT_ONCE = 64
_VERSION = re.compile(r"v?(\d+)")


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What all data files of a table are read with: pyiceberg's own objects."""

    metadata: Any
    io: Any
    projection: Any
    schema: pa.Schema


@dataclass(frozen=True, kw_only=True)
class _File:
    table: _Table
    task: Any


def place_in_catalog(text: str) -> Place:
    """The table that `iceberg:CATALOG.NAMESPACE.TABLE` names.

    Raises:
        UsageError: it has fewer than three parts.
    """
    parts = text.removeprefix(CATALOG).split(".")
    if len(parts) < 3 or not all(parts):
        raise UsageError(f"--input {text}: not of the form iceberg:CATALOG.NAMESPACE.TABLE")
    at = Location(pafs.LocalFileSystem(), text, text)
    return Place(kind=ICEBERG, at=at, name=unit_name(parts[-1]))


def open_table(place: Place, as_of: AsOf) -> Opened:
    """The table's data files as of one snapshot, each a unit.

    Raises:
        UsageError: pyiceberg is not installed or cannot read the table; what is refused by name.
    """
    metadata_file = None if place.at.path.startswith(CATALOG) else _newest_metadata(place.at)
    with the_library(place):
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        table = _loaded(place, metadata_file)
        scan = table.scan(snapshot_id=as_of.snapshot)
        snapshot = scan.snapshot()
        if as_of.snapshot is not None and snapshot is None:
            there = ", ".join(str(s.snapshot_id) for s in table.snapshots()[-3:]) or "none"
            raise UsageError(
                f"--snapshot {as_of.snapshot}: {place.at.shown} has no such snapshot; its last are {there}"
            )
        if snapshot is None:
            return Opened(place=place, snapshot=None)
        refuse_equality_deletes(place, snapshot.manifests(table.io), table.io)
        tasks = sorted(scan.plan_files(), key=lambda task: task.file.file_path)
        spec = table.spec()
        schema = scan.projection()
        read_by = _Table(
            metadata=_trimmed(table.metadata),
            io=table.io,
            projection=schema,
            schema=_plain(schema_to_pyarrow(schema, include_field_ids=False)),
        )
        deleted = deleted_rows(place, tasks, table.io)
        partitions = tuple(schema.find_column_name(f.source_id) or f.name for f in spec.fields)
    units = []
    for task in tasks:
        file = TableFile(
            table=place.name,
            snapshot=snapshot.snapshot_id,
            keyed=as_of.key_column is not None,
            num_rows=task.file.record_count,
            deleted=deleted.get(task.file.file_path, b""),
            partitions=partitions,
            how=_File(table=read_by, task=task),
        )
        units.append(_unit(place, table.location(), file))
    return Opened(place=place, snapshot=snapshot.snapshot_id, units=units)


def _loaded(place: Place, metadata_file: str | None) -> Any:
    """pyiceberg's table."""
    from pyiceberg.catalog import load_catalog
    from pyiceberg.table import StaticTable

    if metadata_file is not None:
        return StaticTable.from_metadata(metadata_file, _properties(place.at.fs))
    catalog, _, identifier = place.at.path.removeprefix(CATALOG).partition(".")
    return load_catalog(catalog).load_table(identifier)


def _properties(fs: pafs.FileSystem) -> dict[str, str]:
    """The file system's credentials by the names that pyiceberg knows."""
    names = {"access_key": "s3.access-key-id", "secret_key": "s3.secret-access-key",
             "session_token": "s3.session-token", "region": "s3.region",
             "endpoint_override": "s3.endpoint"}  # fmt: skip
    return {names[n]: value for n, value in s3_options(fs).items() if n in names}


def _newest_metadata(at: Location) -> str:
    """The metadata file that `version-hint.text` names, or the one of the highest number.

    Raises:
        UsageError: two have that number: only the catalog knows which one counts.
    """
    folder = at.child("metadata")
    hint = (read_bytes(at.fs, f"{folder.path}/version-hint.text") or b"").decode().strip()
    infos = at.fs.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True))
    names = [info.base_name for info in infos if info.base_name.endswith(METADATA_FILE)]
    by_number: dict[int, list[str]] = {}
    for name in names:
        if match := _VERSION.match(name):
            by_number.setdefault(int(match[1]), []).append(name)
    hinted = [n for n in (hint, f"v{hint}{METADATA_FILE}", f"{hint}{METADATA_FILE}") if n in names]
    newest = hinted[:1] or by_number.get(max(by_number, default=-1), [])
    if len(newest) != 1:
        raise UsageError(
            f"--input {at.shown}: {len(newest)} of its metadata files could be the newest "
            f"({', '.join(sorted(newest)) or 'none has a number'}); name the table by its catalog, "
            "iceberg:CATALOG.NAMESPACE.TABLE"
        )
    return f"{table_uri(at)}/metadata/{newest[0]}"


def _trimmed(metadata: Any) -> Any:
    """The metadata without its history, which no reader of a file needs."""
    history: dict[str, Any] = {
        "snapshots": [],
        "snapshot_log": [],
        "metadata_log": [],
        "refs": {},
        "statistics": [],
    }
    return metadata.model_copy(update=history)


def _plain(schema: pa.Schema) -> pa.Schema:
    """Texts and bytes as most tables have them, whatever pyiceberg reads them as."""
    plain = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    return pa.schema([f.with_type(plain.get(f.type, f.type)) for f in schema])


def _unit(place: Place, location: str, file: TableFile) -> Unit:
    data_file = file.how.task.file
    path = data_file.file_path
    below = path.removeprefix(f"{location.rstrip('/')}/")
    name = os.path.splitext(below.removeprefix("data/"))[0]
    if below == path:  # somewhere else, as `add_files` has it
        stem = os.path.splitext(os.path.basename(path))[0]
        name = f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    return Unit(
        name=f"{place.name}/{unit_name(name)}",
        kind=ICEBERG,
        path=location.partition("://")[2] or location,
        shown=f"{place.at.shown} ({below})",
        fs=pafs.LocalFileSystem(),  # what reads it is pyiceberg's own
        source=f"{data_file.file_size_in_bytes}-{data_file.record_count}",
        of_table=file,
    )


class Iceberg(Kind):
    """Data files of Iceberg tables."""

    extensions = frozenset()

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        file = of_table(unit)
        wanted = Wanted.of(file.how.table.schema, unit, reading, file.how.table.metadata.location)
        every = np.arange(file.num_rows or 0)
        numbers = every[live_rows(every, unpack_rows(file.deleted))].tolist()
        with the_library(_place(unit)):
            batches = list(_scanned(file.how, wanted.columns))
        if sum(batch.num_rows for batch in batches) != len(numbers):
            raise LlavaBatchError(
                f"{unit.shown}: pyiceberg reads {sum(b.num_rows for b in batches)} rows of the "
                f"{len(numbers)} that the table's metadata and deletes leave"
            )
        start = 0
        while batches:
            batch = batches.pop(0)
            yield from wanted.rows_of.numbered(batch, numbers[start : start + batch.num_rows])
            start += batch.num_rows

    def column(self, unit: Unit, name: str) -> Iterator[pa.Array]:
        """One column of the rows that are not deleted."""
        with the_library(_place(unit)):
            batches = list(_scanned(of_table(unit).how, [name]))
        yield from (batch[name] for batch in batches)

    def refuse(self, unit: Unit, reading: Reading) -> None:
        refuse_columns(self, unit, reading)

    def columns(self, unit: Unit) -> pa.Schema:
        schema: pa.Schema = of_table(unit).how.table.schema
        return schema

    def count(self, unit: Unit) -> int | None:
        return num_live(unit)


def _place(unit: Unit) -> Place:
    at = Location(unit.fs, unit.path, unit.shown)
    return Place(kind=ICEBERG, at=at, name=of_table(unit).table)


def _scanned(file: _File, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The file's rows that are not deleted, in order, a bounded number at a time."""
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan

    table = file.table
    projection = table.projection.select(*columns)
    scan = ArrowScan(table.metadata, table.io, projection, AlwaysTrue())
    for batch in scan.to_record_batches([file.task]):
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            yield batch.slice(start, _ROWS_AT_ONCE)
