"""The kinds of input there are, and what is asked of a unit whichever kind it is of."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa

from llava_batch.read.arrow import Arrow
from llava_batch.read.files import Files
from llava_batch.read.lake.delta import Delta
from llava_batch.read.lake.iceberg import Iceberg
from llava_batch.read.lake.keys import refuse_repeated_keys
from llava_batch.read.lake.lance import Lance
from llava_batch.read.lake.recognise import DELTA, ICEBERG, LANCE
from llava_batch.read.parquet import Parquet
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Row
from llava_batch.read.tar import Tar
from llava_batch.read.text_tables import Csv, JsonLines
from llava_batch.unit import Unit

LOOSE = "files"
"""The kind whose input files are rows, many of them in a unit; of the others each is a shard."""

KINDS: dict[str, Kind] = {
    "tar": Tar(),
    "parquet": Parquet(),
    "arrow": Arrow(),
    "csv": Csv(),
    "jsonl": JsonLines(),
    LOOSE: Files(),
    DELTA: Delta(),
    ICEBERG: Iceberg(),
    LANCE: Lance(),
}

_FIRST_ROWS = 32
_FIRST_UNITS = 16


def kind_of(path: str) -> str | None:
    """The kind of the file at `path`, by its extension; None where it is of none."""
    extension = os.path.splitext(path)[1].lower()
    return next((name for name, kind in KINDS.items() if extension in kind.extensions), None)


def read_rows(unit: Unit, reading: Reading) -> Iterator[Row]:
    """The unit's rows, read once.

    Raises:
        OSError: the storage failed (what is wrong *inside* a shard is a row in error instead).
    """
    rows = KINDS[unit.kind].rows(unit, reading)
    if not unit.partition:
        return rows
    return (replace(row, columns=row.columns | dict(unit.partition)) for row in rows)


def refuse_without_images(units: Sequence[Unit], reading: Reading) -> None:
    """Look into the first of the units that are to be read whole, before anything is started.

    Raises:
        UsageError: one that is sound holds no images where `reading` looks for them (no such column,
            no member of such an extension); says what it holds.
    """
    for unit in [u for u in units if u.retry is None][:_FIRST_UNITS]:
        KINDS[unit.kind].refuse(unit, reading)


def refuse_keys_of_tables(todo: Sequence[Unit], units: Sequence[Unit], column: str | None) -> None:
    """Refuse lake tables in which `column` does not name each row; `todo` are those of all `units` that are
    to be read whole.

    Raises:
        UsageError: a row without a key, or a key that several rows have.
    """
    if column is None:
        return
    for table in dict.fromkeys(u.id_base for u in todo if u.of_table and u.retry is None):
        its = [unit for unit in units if unit.of_table and unit.id_base == table]
        refuse_repeated_keys(its, column, key_values)


def key_values(unit: Unit, column: str) -> Iterator[pa.Array]:
    """A column of a lake table's file, deleted rows left out.

    Raises:
        OSError: the storage failed.
    """
    kind = KINDS[unit.kind]
    assert isinstance(kind, Delta | Iceberg | Lance)
    return kind.column(unit, column)


def first_row(unit: Unit, reading: Reading) -> dict[str, Any]:
    """The columns that the unit has: where only reading tells, those of its first rows, with the
    first value of each that is not null. Empty where none can be read."""
    schema = KINDS[unit.kind].columns(unit)
    if schema is not None:
        return dict.fromkeys(schema.names) | dict(unit.partition)
    columns: dict[str, Any] = {}
    reading = replace(reading, max_image_bytes=0)  # the images themselves are passed over
    for row in islice(read_rows(unit, reading), _FIRST_ROWS):
        columns |= {n: v for n, v in row.columns.items() if columns.get(n) is None}
    return columns
