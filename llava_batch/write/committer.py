"""Write: answer rows → one committed table per unit, in the unit's own order.

Rows come in any order and perhaps twice (a retried task); each is placed by its image's ordinal and
its own position, so a unit is whole exactly when its end row and all its rows are there. Holds the
rows of open units that no part holds yet (`parts`), and no more. Runs in the driver.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.errors import first_line
from llava_batch.tables import BOOKKEEPING, KEEP, load_schema
from llava_batch.unit import Unit
from llava_batch.write.came import Came
from llava_batch.write.ledger import Ledger, record_of
from llava_batch.write.parts import Parts, is_kept
from llava_batch.write.record import Record
from llava_batch.write.standing import Standing
from llava_batch.write.unit_table import gathered, retried

PART_ROWS = 1000
PART_S = 60.0
"""Rows, or seconds, after which those of open units are kept safe. By unit they are sorted then, or when
a unit is whole: to do so batch by batch costs more than all the rest."""

_UNUSABLE = (ValueError, TypeError, LookupError, pa.ArrowException)
"""What making a table of rows raises where they do not fit it; what its storage raises is OSError."""


@dataclass
class Tally:
    """What has been answered so far in this run."""

    images: int = 0
    rows: int = 0
    images_without_question: int = 0
    rows_copied: int = 0
    rows_with_several_images: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    units: int = 0
    images_of_units: int = 0
    """Images that came back of the `units`, which are whole."""
    bytes_of_shards: int = 0
    images_of_shards: int = 0
    """Of those whose images only reading counts: the sizes of their files, and their images."""
    failed_units: dict[str, str] = field(default_factory=dict)
    answer_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def num_errors(self) -> int:
        return self.errors.total()

    def count(self, asked: pa.Table) -> None:
        """Count rows that something was asked in."""
        self.rows += asked.num_rows
        self.errors.update(code for code in asked["error_code"].to_pylist() if code)
        self.rows_with_several_images += pc.sum(pc.greater(asked["num_images"], 1)).as_py() or 0
        turns = pc.list_flatten(asked["turns"])  # the row's own columns are its last turn's alone
        self.answer_tokens += pc.sum(pc.struct_field(turns, "answer_tokens")).as_py() or 0
        self.prompt_tokens += pc.sum(asked["prompt_tokens"]).as_py() or 0


@dataclass
class _Open:
    """A unit whose rows are coming in."""

    parts: list[pa.Table] = field(default_factory=list)
    """Rows that are kept safe."""
    fresh: list[pa.Table] = field(default_factory=list)
    num_images: int | None = None
    came: Came = field(default_factory=Came)
    copies: list[pa.Table] = field(default_factory=list)
    """Rows that stand for images whose answers are copied."""

    @property
    def is_whole(self) -> bool:
        return self.num_images is not None and self.came.num_whole >= self.num_images


class Committer:
    """Gathers answer rows by unit and commits each unit when its last row is in; `on_commit` is told
    the name and the whole table of each."""

    def __init__(
        self,
        ledger: Ledger,
        units: list[Unit],
        keep: pa.Schema,
        run: dict[str, Any],
        on_commit: Callable[[str, pa.Table], None] | None = None,
        standing: Standing | None = None,
    ) -> None:
        self.tally = Tally()
        self.taken_up: Tally | None = None
        """The tally as it began, once that is known: what earlier runs had answered of open units."""
        self.limited: list[Record] = []
        """What there would be to record of the tables that `--limit` keeps from being whole units."""
        self._ledger = ledger
        self._units = {unit.name: unit for unit in units}
        self._open: dict[str, _Open] = {}
        self._parts = Parts(ledger)
        self._unsorted: list[pa.Table] = []
        self._num_fresh = 0
        self._since = 0.0
        self._done: set[str] = set()
        self._keep = keep
        self._run = run
        self._on_commit = on_commit
        self._standing = standing

    def take_up(self) -> tuple[list[Unit], list[pa.Table]]:
        """Go on where earlier runs were killed: the units, their images that were answered then left
        out; and the rows of those, which are taken in."""
        taken = self._parts.take_up(self._units.values())
        for name, rows in taken.items():
            places = (rows[n].to_pylist() for n in ("ordinal", "position", "siblings"))
            for place in zip(*places, strict=True):
                self._is_fresh(name, *place)
            self.tally.count(rows)
            self._open[name].parts.append(rows)
            answered = frozenset(rows["ordinal"].to_pylist())
            self._units[name] = replace(self._units[name], answered=answered)
        self.taken_up = replace(self.tally, errors=Counter(self.tally.errors))
        return [*self._units.values()], [*taken.values()]

    def add(self, batch: pa.Table) -> list[str]:
        """Take in answer rows of any units; returns the names of the units committed by it."""
        names = batch["unit"].to_pylist()
        is_end = batch["end"].to_pylist()
        touched = [name for name in dict.fromkeys(names) if self._is_awaited(name)]
        if any(is_end):
            for end in batch.filter(batch["end"]).to_pylist():
                self._end(end)
        places = (batch[n].to_pylist() for n in ("ordinal", "position", "siblings"))
        rows = zip(names, is_end, *places, strict=True)
        fresh = [i for i, row in enumerate(rows) if not row[1] and self._is_fresh(row[0], *row[2:])]
        self._hold(
            batch if len(fresh) == batch.num_rows else batch.take(pa.array(fresh, pa.int64()))
        )
        return [name for name in touched if self._committed(name)]

    def _is_awaited(self, name: str) -> bool:
        over = name in self._done or name in self.tally.failed_units
        return name in self._units and not over

    def _end(self, end: dict[str, Any]) -> None:
        """Take in what a unit's end row says: how many images it has, or that it was not read whole."""
        if not self._is_awaited(end["unit"]):
            return
        if end["error_code"]:
            self.keep_safe()
            self.tally.failed_units[end["unit"]] = end["error_message"]
            self._open.pop(end["unit"], None)
        else:
            self._open.setdefault(end["unit"], _Open()).num_images = end["ordinal"]

    def _is_fresh(self, name: str, ordinal: int, position: int, siblings: int) -> bool:
        """Whether a row is awaited and has not come before; it has now."""
        if not self._is_awaited(name):
            return False
        opened = self._open.setdefault(name, _Open())
        images = opened.came.num_images
        fresh = opened.came.take(ordinal, position, siblings)
        self.tally.images += opened.came.num_images - images
        return fresh

    def _hold(self, rows: pa.Table) -> None:
        """Count rows that have not come before, and keep them."""
        asked = rows.filter(pc.greater(rows["siblings"], 0))
        self.tally.count(asked)
        copies = rows.filter(pc.fill_null(rows["copied"], False))
        for name, part in _by_unit(copies):
            self._open[name].copies.append(part)
        self.tally.images_without_question += rows.num_rows - asked.num_rows - copies.num_rows
        if not self._num_fresh:
            self._since = time.monotonic()
        self._unsorted.append(asked)
        self._num_fresh += asked.num_rows
        if self._num_fresh >= PART_ROWS or time.monotonic() - self._since >= PART_S:
            self.keep_safe()

    def _sort(self) -> None:
        """Give the rows that came of late to their units; those of units that failed go."""
        for name, part in _by_unit(pa.concat_tables(self._unsorted)) if self._unsorted else ():
            if name in self._open:
                self._open[name].fresh.append(part)
        self._unsorted = []

    def keep_safe(self) -> None:
        """Write the fresh rows of units that are open still as a part."""
        self._sort()
        self._num_fresh = 0
        ours = {n: o for n, o in self._open.items() if o.fresh and is_kept(self._units[n])}
        if not ours:
            return
        counts = [sum(rows.num_rows for rows in opened.fresh) for opened in ours.values()]
        rows = pa.concat_tables([rows for opened in ours.values() for rows in opened.fresh])
        kept = self._parts.put(rows, {name: self._units[name].as_read for name in ours})
        for opened, count, past in zip(ours.values(), counts, accumulate(counts), strict=True):
            opened.parts.append(kept.slice(past - count, count))
            opened.fresh = []

    def _committed(self, name: str) -> bool:
        """Commit the unit, if it is whole now."""
        opened = self._open.get(name)
        if opened is None or not opened.is_whole:
            return False
        self._sort()
        del self._open[name]
        try:
            table = self._commit(self._units[name], opened)
        except _UNUSABLE as error:
            self.tally.failed_units[name] = f"its table cannot be made: {first_line(error)}"
            return False
        self._done.add(name)
        self._parts.drop(name)
        if self._on_commit is not None:
            self._on_commit(name, table)
        return True

    def close(self) -> None:
        """All rows that there are have come: units that are not whole have failed."""
        for name in self._units.keys() - self._done - self.tally.failed_units.keys():
            limit = self._units[name].limit
            if limit is not None and self.tally.images >= limit and name not in self._open:
                continue  # the run had its images before it came to this unit
            opened = self._open.pop(name, _Open())
            end = "its end" if opened.num_images is None else f"{opened.num_images}"
            self.tally.failed_units[name] = (
                f"rows of {opened.came.num_images} images came back and not {end}; they were lost on "
                "the way, which is a defect of llava-batch"
            )

    def _commit(self, unit: Unit, opened: _Open) -> pa.Table:
        num_copied = 0
        if opened.copies:
            assert self._standing is not None
            opened.parts.append(self._standing.copied(pa.concat_tables(opened.copies), unit))
            num_copied = opened.parts[-1].num_rows
        table = self._table(opened)
        num_images = opened.num_images or 0
        if unit.retry is not None:
            old = self._ledger.read_table(unit.name)
            if old is None:
                raise ValueError(f"{self._ledger.table_name(unit.name)} is no longer there")
            num_images = self._ledger.records[unit.name].images
            table = retried(old.select(table.schema.names), table, unit)
        _refuse_equal_ids(table)
        complete = unit.limit is None or unit.retry is not None
        footer = self._ledger.footer(unit, complete=complete) | {
            "llava_batch.images": str(num_images),
            "llava_batch.model": self._run["model"],
            "llava_batch.run": json.dumps(self._run, sort_keys=True),
        }
        contract = load_schema("answers").metadata or {}
        table = table.replace_schema_metadata({**contract, **footer})
        moving = nullcontext() if self._standing is None else self._standing.move(unit, table)
        with moving if complete else nullcontext():
            self._ledger.write_table(unit, table)
            record = record_of(self._ledger, unit, table, num_images)
            if complete:
                self._ledger.commit(record)
                if unit.members:
                    self._ledger.remember(unit)
            else:
                self.limited.append(record)
        self.tally.units += 1
        self.tally.images_of_units += opened.came.num_images
        if unit.num_rows is None and unit.num_bytes:
            self.tally.bytes_of_shards += unit.num_bytes
            self.tally.images_of_shards += opened.came.num_images
        self.tally.rows_copied += num_copied
        return table

    def _table(self, opened: _Open) -> pa.Table:
        """The unit's rows in order, with the published schema."""
        schema = pa.schema([*load_schema("answers"), *self._keep])
        parts = [part.replace_schema_metadata() for part in (*opened.parts, *opened.fresh)]
        if not parts:
            return schema.empty_table()
        places = pa.concat_tables([part.select(["ordinal", "position"]) for part in parts])
        order = np.lexsort((places["position"].to_numpy(), places["ordinal"].to_numpy()))
        rows = gathered(parts, order).drop_columns(BOOKKEEPING.names)
        rows = rows.rename_columns([n.removeprefix(KEEP) for n in rows.schema.names])
        return rows.select(schema.names).cast(schema)


def _by_unit(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each unit, in the order in which they are."""
    if not rows.num_rows:
        return
    units = rows["unit"].combine_chunks().dictionary_encode()
    codes = units.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    if len(units.dictionary) > 1:
        rows = rows.take(order)
    bounds = np.searchsorted(codes[order], np.arange(len(units.dictionary) + 1))
    for name, first, past in zip(units.dictionary.to_pylist(), bounds, bounds[1:], strict=False):
        yield name, rows.slice(first, past - first)


def _refuse_equal_ids(table: pa.Table) -> None:
    if len(pc.unique(table["id"])) == table.num_rows:
        return
    ident, count = Counter(table["id"].to_pylist()).most_common(1)[0]
    raise ValueError(f"the id {ident} stands {count} times; give its rows keys of their own")
