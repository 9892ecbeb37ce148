"""A Lance dataset, read by pylance, a fragment at a time: each is a unit, `<dataset>/<fragment's id>`.

A fragment stays itself when rows of it are deleted and when columns are added: its fingerprint is of the
data files that hold the columns which the job reads. A row's number is its offset in the fragment, as
pylance says it (the row's address). Columns encoded as blobs are read as their bytes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llava_batch.errors import UsageError
from llava_batch.read.image_column import find_image_column
from llava_batch.read.lake.recognise import LANCE
from llava_batch.read.lake.table import (
    AsOf,
    Opened,
    Place,
    Wanted,
    num_live,
    object_store_options,
    of_table,
    refuse_columns,
    table_uri,
    the_library,
)
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Row
from llava_batch.storage import Location
from llava_batch.unit import TableFile, Unit, pack_rows

_ROWS_AT_ONCE = 64
_OFFSET = 0xFFFFFFFF
"""The lower half of a row's address; the upper is its fragment."""
_BLOB = b"lance-encoding:blob"


@dataclass(frozen=True, kw_only=True)
class _File:
    fragment: int
    schema: pa.Schema


def open_table(place: Place, as_of: AsOf) -> Opened:
    """The dataset's fragments as of one version, each a unit.

    Raises:
        UsageError: pylance is not installed or cannot read the dataset.
    """
    with the_library(place):
        dataset = _dataset(place.at.fs, table_uri(place.at), as_of.snapshot)
        schema = _as_read(dataset.schema)
    fields = _fields_read(dataset, schema, as_of)
    with the_library(place):
        units = [
            _unit(place, fragment, fields, TableFile(
                table=place.name,
                snapshot=dataset.version,
                keyed=as_of.key_column is not None,
                num_rows=fragment.physical_rows,
                deleted=_deleted(fragment),
                how=_File(fragment=fragment.fragment_id, schema=schema),
            ))
            for fragment in dataset.get_fragments()
        ]  # fmt: skip
    return Opened(place=place, snapshot=dataset.version, units=units)


def _dataset(fs: Any, uri: str, version: int | None) -> Any:
    import lance

    return lance.dataset(uri, version=version, storage_options=object_store_options(fs))


def _as_read(schema: pa.Schema) -> pa.Schema:
    """The schema of what is read: blobs as bytes."""
    blobs = [(f.metadata or {}).get(_BLOB) == b"true" for f in schema]
    plain = [
        pa.field(f.name, pa.large_binary()) if b else f for f, b in zip(schema, blobs, strict=True)
    ]
    return pa.schema([f.with_metadata(None) for f in plain])


def _fields_read(dataset: Any, schema: pa.Schema, as_of: AsOf) -> frozenset[int] | None:
    """Ids of the fields that the job reads, nested ones too; None where that cannot be said."""
    if as_of.columns is None:
        return None
    try:
        image = find_image_column(schema, as_of.image_column, "")
    except UsageError:
        return None  # said in full when the job's columns are looked for
    names = {image, as_of.key_column, *as_of.columns}
    return frozenset(
        ident for f in dataset.lance_schema.fields() if f.name() in names for ident in _ids(f)
    )


def _ids(field: Any) -> Iterator[int]:
    yield field.id()
    for child in field.children():
        yield from _ids(child)


def _deleted(fragment: Any) -> bytes:
    if not fragment.num_deletions:
        return b""
    live = fragment.scanner(columns=[], with_row_address=True).to_table()["_rowaddr"].to_numpy()
    gone = np.ones(fragment.physical_rows, bool)
    gone[(live & _OFFSET).astype(np.int64)] = False
    return pack_rows(np.flatnonzero(gone))


def _unit(place: Place, fragment: Any, fields: frozenset[int] | None, file: TableFile) -> Unit:
    files = [f for f in fragment.metadata.files if fields is None or fields & set(f.fields)]
    facts = repr([(f.path, sorted(fields & set(f.fields)) if fields else None) for f in files])
    name = f"{place.name}/{fragment.fragment_id:05d}"
    return Unit(
        name=name,
        kind=LANCE,
        path=place.at.path,
        shown=f"{place.at.shown} (fragment {fragment.fragment_id})",
        fs=place.at.fs,
        source=hashlib.sha256(facts.encode()).hexdigest()[:16],
        of_table=file,
    )


class Lance(Kind):
    """Fragments of Lance datasets."""

    extensions = frozenset()

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        wanted = Wanted.of(of_table(unit).how.schema, unit, reading)
        for batch in _scanned(unit, wanted.columns):
            numbers = (batch["_rowaddr"].to_numpy() & _OFFSET).tolist()
            yield from wanted.rows_of.numbered(batch.select(wanted.columns), numbers)

    def column(self, unit: Unit, name: str) -> Iterator[pa.Array]:
        """One column of the rows that are not deleted."""
        yield from (batch[name] for batch in _scanned(unit, [name]))

    def refuse(self, unit: Unit, reading: Reading) -> None:
        refuse_columns(self, unit, reading)

    def columns(self, unit: Unit) -> pa.Schema:
        schema: pa.Schema = of_table(unit).how.schema
        return schema

    def count(self, unit: Unit) -> int | None:
        return num_live(unit)


def _scanned(unit: Unit, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The fragment's rows that are not deleted, in order, with their addresses."""
    file = of_table(unit)
    place = Place(kind=LANCE, at=Location(unit.fs, unit.path, unit.shown), name=file.table)
    with the_library(place):
        dataset = _dataset(unit.fs, table_uri(place.at), file.snapshot)
        scanner = dataset.get_fragment(file.how.fragment).scanner(
            columns=columns,
            with_row_address=True,
            batch_size=_ROWS_AT_ONCE,
            batch_readahead=1,
            blob_handling="all_binary",
        )
        batches = iter(scanner.to_batches())
    while True:
        with the_library(place):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
