"""Reading: what a reader needs to know of the job, and the rows of one unit. Knows nothing of Ray."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.job import Job
from llava_batch.read.files import read_files
from llava_batch.read.parquet import read_parquet
from llava_batch.read.row import Row
from llava_batch.read.storage_failed import StorageFailed, stored
from llava_batch.read.tar import read_tar
from llava_batch.unit import Unit

_FIRST_ROWS = 32
_STREAM_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader needs to know of the job; small and picklable."""

    prompt_columns: tuple[str, ...]
    keep: pa.Schema
    image_column: str | None
    key_column: str | None
    max_image_bytes: int
    stall_timeout_s: float
    max_tries: int

    @classmethod
    def of(cls, job: Job, prompt_columns: Sequence[str], keep: pa.Schema) -> "Reading":
        return cls(
            prompt_columns=tuple(prompt_columns),
            keep=keep,
            image_column=job.image_column,
            key_column=job.key_column,
            max_image_bytes=job.max_image_bytes,
            stall_timeout_s=job.stall_timeout_s,
            max_tries=job.max_tries,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.prompt_columns, *self.keep.names)))


def read_rows(unit: Unit, reading: Reading) -> Iterator[Row]:
    """The unit's rows, read once.

    Raises:
        OSError: the storage failed (what is wrong *inside* a shard is a row in error instead).
    """
    limit = reading.max_image_bytes
    if unit.kind == "tar":
        with unit.fs.open_input_stream(unit.path, buffer_size=_STREAM_BYTES) as stream:
            yield from read_tar(stream, max_image_bytes=limit)
    elif unit.kind == "parquet":
        with unit.fs.open_input_file(unit.path) as file:
            yield from read_parquet(
                file,
                unit.shown,
                row_groups=unit.row_groups,
                image_column=reading.image_column,
                key_column=reading.key_column,
                columns=reading.columns,
                max_image_bytes=limit,
            )
    else:
        columns = bool(reading.columns)
        yield from read_files(
            unit.fs, unit.path, unit.members, with_columns=columns, max_image_bytes=limit
        )


def first_row(unit: Unit, reading: Reading) -> dict[str, Any]:
    """The columns that the unit's first rows have, with the first value of each that is not null;
    for Parquet, its schema's names. Empty where none can be read."""
    if unit.kind == "parquet":
        with unit.fs.open_input_file(unit.path) as file:
            try:
                return dict.fromkeys(pq.read_schema(stored(file)).names)
            except StorageFailed:
                raise
            except (OSError, ValueError, pa.ArrowException):
                return {}  # damaged: its rows will say so
    columns: dict[str, Any] = {}
    for row in islice(read_rows(unit, reading), _FIRST_ROWS):
        columns |= {n: v for n, v in row.columns.items() if columns.get(n) is None}
    return columns


def count_rows(unit: Unit, reading: Reading, most: int) -> int:
    """How many images the unit has, counted up to `most`."""
    if unit.kind == "files":
        return min(most, len(unit.members))
    return sum(1 for _ in islice(read_rows(unit, reading), most))
