"""Read: work units → rows, as Ray Data read tasks, one unit each, in blocks of bounded size.

Each unit's rows are followed by one end row that says how many there were, so that whoever gathers
them knows when the unit is whole. A unit that its storage does not give (in `--storage-patience`), or that
kills its reader `max_tries` times, ends with an end row in error: it is left open, nothing of it is
committed, and the next run reads it again. A reader that hangs ends its process.
"""

import faulthandler
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from llava_batch.errors import LlavaBatchError, RowError
from llava_batch.ids import printable
from llava_batch.job import Job
from llava_batch.patience import Outage, Patience
from llava_batch.read.columns import KEEP, as_json, cast_kept, image_schema
from llava_batch.read.files import read_files
from llava_batch.read.parquet import read_parquet
from llava_batch.read.row import Row
from llava_batch.read.storage_failed import StorageFailed, stored
from llava_batch.read.tar import read_tar
from llava_batch.unit import Unit
from llava_batch.workers.crash_guard import Attempts

_BLOCK_ROWS = 32
_BLOCK_BYTES = 8 * 2**20
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
    patience: Patience
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
            patience=Patience(job.storage_patience),
            max_tries=job.max_tries,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.prompt_columns, *self.keep.names)))


class UnitSource(Datasource):
    """A Ray Data source with one streaming read task for each unit; `board` counts the attempts."""

    def __init__(self, units: Sequence[Unit], reading: Reading, board: Any) -> None:
        super().__init__()
        self._units = units
        self._reading = reading
        self._board = board

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        unknown = BlockMetadata(
            num_rows=None, size_bytes=None, input_files=None, exec_stats=None, task_exec_stats=None
        )
        return [
            ReadTask(partial(_read_carefully, u, self._reading, self._board), unknown)
            for u in self._units
        ]


def _read_carefully(unit: Unit, reading: Reading, board: Any) -> Iterator[pa.Table]:
    """The unit's blocks, unless its reader has died too often."""
    attempts = Attempts(board, "read", reading.max_tries)
    in_hand = {"unit": unit.name, "ordinal": 0, "end": False}
    if not attempts.may_try(in_hand):
        yield _end(unit, 0, reading, attempts.verdict()["error_message"])
        return
    yield from read_blocks(unit, reading)
    attempts.done([in_hand])


def read_blocks(unit: Unit, reading: Reading) -> Iterator[pa.Table]:
    """The unit's rows as tables of `images` rows, and then its end row."""
    ordinal, held, held_bytes = 0, [], 0
    try:
        for row in _persistently(unit, reading):
            held.append(row)
            held_bytes += sum(map(len, row.images))
            if len(held) >= _BLOCK_ROWS or held_bytes >= _BLOCK_BYTES:
                yield _table(unit, ordinal, held, reading)
                ordinal, held, held_bytes = ordinal + len(held), [], 0
        if held:
            yield _table(unit, ordinal, held, reading)
            ordinal += len(held)
        yield _end(unit, ordinal, reading, None)
    except (OSError, LlavaBatchError) as error:
        yield _end(unit, ordinal, reading, f"{type(error).__name__}: {error}")


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


def _watched(rows: Iterator[Row], stall_timeout_s: float) -> Iterator[Row]:
    """`rows`; one that takes longer than the limit ends the process, which Ray starts anew."""
    while True:
        # A timer in C: it fires even where a stuck call holds the interpreter's lock.
        faulthandler.dump_traceback_later(stall_timeout_s, exit=True)
        try:
            row = next(rows, None)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if row is None:
            return
        yield row


def _persistently(unit: Unit, reading: Reading) -> Iterator[Row]:
    """The unit's rows; where the storage fails, opened again and carried on where it broke off."""
    done, outage = 0, Outage(reading.patience)
    while True:
        try:
            rows = _watched(read_rows(unit, reading), reading.stall_timeout_s)
            for row in islice(rows, done, unit.limit):
                outage.over()
                if unit.retry is None or row.name in unit.retry:
                    yield row
                done += 1
            return
        except OSError as error:
            if not outage.waited(error):
                raise


def _table(unit: Unit, start: int, rows: list[Row], reading: Reading) -> pa.Table:
    schema = image_schema(reading.keep)
    columns: list[Any] = [
        [unit.name] * len(rows),
        list(range(start, start + len(rows))),
        [False] * len(rows),
        [printable(r.key) for r in rows],
        [r.mark for r in rows],
        [r.images if not r.error else None for r in rows],
        [as_json(r.columns, reading.prompt_columns) for r in rows],
        [r.error[0].value if r.error else None for r in rows],
        [printable(r.error[1]) if r.error else None for r in rows],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=False)]
    for field in reading.keep:
        values = [r.columns.get(field.name) for r in rows]
        arrays.append(cast_kept(values, field.type, field.name, unit.name))
    return pa.Table.from_arrays(arrays, schema=schema)


def _end(unit: Unit, num_rows: int, reading: Reading, problem: str | None) -> pa.Table:
    code = RowError.SHARD_DAMAGED.value if problem else None
    row = {"unit": unit.name, "ordinal": num_rows, "end": True, "error_code": code,
           "error_message": problem}  # fmt: skip
    schema = image_schema(reading.keep)
    assert not any(name.startswith(KEEP) for name in row)
    return pa.Table.from_pylist([row], schema=schema)
