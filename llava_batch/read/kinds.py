"""The kinds of input there are, and what is asked of a unit whichever kind it is of."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from llava_batch.read.arrow import Arrow
from llava_batch.read.files import Files
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


def first_row(unit: Unit, reading: Reading) -> dict[str, Any]:
    """The columns that the unit has: where only reading tells, those of its first rows, with the
    first value of each that is not null. Empty where none can be read."""
    schema = KINDS[unit.kind].columns(unit)
    if schema is not None:
        return dict.fromkeys(schema.names) | dict(unit.partition)
    columns: dict[str, Any] = {}
    for row in islice(read_rows(unit, reading), _FIRST_ROWS):
        columns |= {n: v for n, v in row.columns.items() if columns.get(n) is None}
    return columns
