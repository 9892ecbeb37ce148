"""Read: work units → rows, as Ray Data read tasks, one unit each, or some small ones, in blocks of bounded
size. Under `--limit` one task reads the units in turn.

Each unit's rows are followed by one end row that says how many there were, so that whoever gathers
them knows when the unit is whole. A unit that its storage does not give (in `--storage-patience`), or for
which there is no memory (after `_TRIES`), or that kills its reader `max_tries` times, ends with an end
row in error: it is left open, nothing of it is committed, and the next run reads it again. A reader
that hangs ends its process.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from llava_batch.errors import LlavaBatchError, RowError
from llava_batch.ids import printable
from llava_batch.patience import Outage
from llava_batch.read.columns import as_json, cast_kept, image_schema
from llava_batch.read.kinds import read_rows
from llava_batch.read.reading import Reading
from llava_batch.read.row import Row
from llava_batch.tables import KEEP, packed
from llava_batch.unit import Unit
from llava_batch.workers.crash_guard import CrashGuard
from llava_batch.workers.process import watchdog

_BLOCK_ROWS = 32
_BLOCK_BYTES = 8 * 2**20
"""The most in one block; an image that is larger is a block by itself."""
_TRIES = 3


class UnitSource(Datasource):  # type: ignore[misc]
    """A Ray Data source of streaming read tasks; `shared` counts the attempts."""

    def __init__(self, units: Sequence[Unit], reading: Reading, shared: Any) -> None:
        super().__init__()
        self._units = units
        self._reading = reading
        self._shared = shared

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        unknown = BlockMetadata(
            num_rows=None, size_bytes=None, input_files=None, exec_stats=None, task_exec_stats=None
        )
        whole = [u for u in self._units if u.limit is None]
        limited = [u for u in self._units if u.limit is not None]
        reads = [partial(_read_few, us, self._reading, self._shared) for us in _in_tasks(whole)]
        if limited:
            reads.append(partial(read_in_turn, limited, self._reading, self._shared))
        return [ReadTask(partial(_packed, read), unknown) for read in reads]

    @property
    def num_tasks(self) -> int:
        """How many read tasks there are; one at least, as Ray Data has it."""
        return max(1, len(self.get_read_tasks(1)))


def _in_tasks(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Units that one task reads: one, or small ones that one block might hold, or few: a task costs the
    driver as much as a batch of rows."""
    held: list[Unit] = []
    num_bytes = 0
    for unit in units:
        size = _BLOCK_BYTES if unit.num_bytes is None else unit.num_bytes
        if held and (num_bytes + size > _BLOCK_BYTES or len(held) == _BLOCK_ROWS):
            yield held
            held, num_bytes = [], 0
        held.append(unit)
        num_bytes += size
    if held:
        yield held


def _read_few(units: Sequence[Unit], reading: Reading, shared: Any) -> Iterator[pa.Table]:
    """The blocks of some units, one after the other; of several, small ones together."""
    blocks = (block for unit in units for block in _read_carefully(unit, reading, shared))
    return blocks if len(units) == 1 else _joined(blocks)


def _joined(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Blocks put together as long as one of them holds `_BLOCK_ROWS` images and `_BLOCK_BYTES`, or that
    many rows that end units."""
    held: list[pa.Table] = []
    for block in blocks:
        together = [*held, block]
        num_ends = sum(pc.sum(table["end"]).as_py() for table in together)
        num_images = sum(table.num_rows for table in together) - num_ends
        num_bytes = sum(table.nbytes for table in together)
        if held and (max(num_images, num_ends) > _BLOCK_ROWS or num_bytes > _BLOCK_BYTES):
            yield pa.concat_tables(held)
            held = []
        held.append(block)
    if held:
        yield pa.concat_tables(held)


def _packed(read: Callable[[], Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Each block of rows as a batch that stays as it is (`tables.packed`)."""
    return map(packed, read())


def read_in_turn(units: Sequence[Unit], reading: Reading, shared: Any) -> Iterator[pa.Table]:
    """The blocks of one unit after another, until the images that `--limit` allows have come: which
    are the first is known only by reading, and what comes after them is not read at all."""
    left = units[0].limit or 0
    for unit in units:
        if left <= 0:
            return
        for block in _read_carefully(replace(unit, limit=left), reading, shared):
            left -= block.num_rows - pc.sum(block["end"]).as_py()
            yield block


def _read_carefully(unit: Unit, reading: Reading, shared: Any) -> Iterator[pa.Table]:
    """The unit's blocks, unless its reader has died too often."""
    guard = CrashGuard(shared, "read", reading.max_tries)
    in_hand = {"unit": unit.name, "ordinal": 0, "end": False}
    if not guard.may_try(in_hand):
        yield end_row(unit, 0, reading, guard.verdict()["error_message"])
        return
    yield from read_blocks(unit, reading)
    guard.done([in_hand])


def read_blocks(unit: Unit, reading: Reading) -> Iterator[pa.Table]:
    """The unit's rows as tables of `images` rows, behind the last of them its end row."""
    ordinal, held = 0, _Held()
    try:
        for ordinal, row in enumerate(_persistently(unit, reading), 1):
            if ordinal - 1 in unit.answered:
                continue
            if not held.has_room(row):
                yield table_of_rows(unit, held.taken(), reading)
            held.add(ordinal - 1, row)
        last = [table_of_rows(unit, held.taken(), reading)] if held.rows else []
        yield pa.concat_tables([*last, end_row(unit, ordinal, reading, None)])
    except (OSError, MemoryError, LlavaBatchError) as error:
        yield end_row(unit, ordinal, reading, f"{type(error).__name__}: {error}")


@dataclass
class _Held:
    """Rows by their places, that are to be one block."""

    rows: dict[int, Row] = field(default_factory=dict)
    num_bytes: int = 0

    def has_room(self, row: Row) -> bool:
        """Whether the row goes into the same block; into an empty one any does."""
        fits = self.num_bytes + _num_bytes(row) <= _BLOCK_BYTES
        return not self.rows or (fits and len(self.rows) < _BLOCK_ROWS)

    def add(self, place: int, row: Row) -> None:
        self.rows[place] = row
        self.num_bytes += _num_bytes(row)

    def taken(self) -> dict[int, Row]:
        """The rows, which are held no more."""
        rows, self.rows, self.num_bytes = self.rows, {}, 0
        return rows


def _num_bytes(row: Row) -> int:
    return sum(map(len, row.images))


def _watched(rows: Iterator[Row], stall_timeout_s: float) -> Iterator[Row]:
    """`rows`; one that takes longer than the limit ends the process, which Ray starts anew."""
    while True:
        with watchdog(stall_timeout_s):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _persistently(unit: Unit, reading: Reading) -> Iterator[Row]:
    """The unit's rows; where the storage fails or memory is short, opened again and carried on where
    it broke off."""
    done, outage, short = 0, Outage(reading.patience), 0
    while True:
        try:
            rows = _watched(read_rows(unit, reading), reading.stall_timeout_s)
            for row in islice(_wanted(rows, unit, outage), done, unit.limit):
                yield row
                done += 1
            return
        except OSError as error:
            if not outage.waited(error):
                raise
        except MemoryError:
            short += 1
            if short == _TRIES:
                raise
            time.sleep(2 ** (short - 1))


def _wanted(rows: Iterator[Row], unit: Unit, outage: Outage) -> Iterator[Row]:
    """The rows that the unit is read for: all, or those that are answered again."""
    for row in rows:
        outage.over()
        if unit.retry is None or row.name in unit.retry:
            yield row


def table_of_rows(unit: Unit, held: dict[int, Row], reading: Reading) -> pa.Table:
    """Rows of a unit, each by its ordinal, as a table of `images`."""
    rows = [*held.values()]
    schema = image_schema(reading.keep)
    columns: list[Any] = [
        [unit.name] * len(rows),
        [*held],
        [False] * len(rows),
        [printable(r.key) for r in rows],
        [r.mark for r in rows],
        [unit.id_base] * len(rows),
        [(r.images or None) if not r.error else None for r in rows],
        [[printable(u) for u in r.uris] or None for r in rows],
        [as_json(r.columns, reading.prompt_columns) for r in rows],
        [r.error[0].value if r.error else None for r in rows],
        [printable(r.error[1]) if r.error else None for r in rows],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=False)]
    for kept in reading.keep:
        values = [r.columns.get(kept.name) for r in rows]
        arrays.append(cast_kept(values, kept.type, kept.name, unit.name))
    return pa.Table.from_arrays(arrays, schema=schema)


def end_row(unit: Unit, num_rows: int, reading: Reading, problem: str | None) -> pa.Table:
    """The row that ends a unit of so many rows; `problem` where it was not read whole."""
    code = RowError.SHARD_DAMAGED.value if problem else None
    row = {"unit": unit.name, "ordinal": num_rows, "end": True, "error_code": code,
           "error_message": problem}  # fmt: skip
    schema = image_schema(reading.keep)
    assert not any(name.startswith(KEEP) for name in row)
    return pa.Table.from_pylist([row], schema=schema)
