"""Write: answer rows → one committed table per unit, in the unit's own order.

Rows come in any order and perhaps twice (a retried task); each is placed by its image's ordinal and
its own position, so a unit is whole exactly when its end row and all its rows are there. Holds the
rows of open units that no part holds yet (`parts`), and of the units that are being written (`writers`), and no
more. Runs in the driver, on one thread.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.errors import OutputConflict, first_line
from llava_batch.patience import Patience
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger
from llava_batch.write.open_unit import OpenUnit
from llava_batch.write.parts import Parts, is_kept
from llava_batch.write.record import Record
from llava_batch.write.scratch import Held
from llava_batch.write.standing import Standing
from llava_batch.write.tally import Tally
from llava_batch.write.unit_commit import Committed, UnitCommit
from llava_batch.write.writers import GivenUp, Writers

PART_ROWS = 1000
PART_S = 60.0
PART_BYTES = 64 * 2**20
"""Rows, seconds or bytes after which those of open units are kept safe. By unit they are sorted then, or when
a unit is whole: to do so batch by batch costs more than all the rest."""

_UNUSABLE = (ValueError, TypeError, LookupError, pa.ArrowException)
"""What making a table of rows raises where they do not fit it; what its storage raises is OSError."""


class Committer:
    """Gathers answer rows by unit and commits each unit when its last row is in; `on_commit` is told
    the name of each and of which images its rows are (`unit_commit.IMAGE`). With `writers`, units are written
    on their threads, and what came of one is known by a later call; `check` is asked before each write."""

    def __init__(
        self,
        ledger: Ledger,
        units: list[Unit],
        keep: pa.Schema,
        run: dict[str, Any],
        on_commit: Callable[[str, pa.Table], None] | None = None,
        standing: Standing | None = None,
        writers: Writers | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.tally = Tally()
        self.taken_up: Tally | None = None
        """The tally as it began, once that is known: what earlier runs had answered of open units."""
        self.limited: list[Record] = []
        """What there would be to record of the tables that `--limit` keeps from being whole units."""
        self._ledger = ledger
        self._units = {unit.name: unit for unit in units}
        self._open: dict[str, OpenUnit] = {}
        self._writers = writers
        self._parts = Parts(ledger, self._later)
        self._unsorted: list[pa.Table] = []
        self._num_fresh = self._fresh_bytes = 0
        self._since = 0.0
        self._done: set[str] = set()
        """Units that are committed, or being written."""
        self._news: list[str] = []
        self._keep = keep
        self._run = run
        self._on_commit = on_commit
        self._standing = standing
        self._check = check

    def take_up(self) -> tuple[list[Unit], Iterator[pa.Table]]:
        """Go on where earlier runs were killed: the units, their images that were answered then left
        out; and the rows of those, which are taken in."""
        taken = self._parts.take_up(self._units.values())
        for name, parts in taken.items():
            answered: set[int] = set()
            for part in parts:
                rows = part.read()
                places = (rows[n].to_pylist() for n in ("ordinal", "position", "siblings"))
                for place in zip(*places, strict=True):
                    self._is_fresh(name, *place)
                self.tally.count(rows)
                self._open[name].keep(part, rows)
                answered.update(rows["ordinal"].to_pylist())
            self._units[name] = replace(self._units[name], answered=frozenset(answered))
        self.taken_up = replace(self.tally, errors=Counter(self.tally.errors))
        return [*self._units.values()], (p.read() for parts in taken.values() for p in parts)

    def add(self, batch: pa.Table) -> list[str]:
        """Take in answer rows of any units; returns the names of the units that were committed since the last call, or
        by this.

        Raises:
            OSError: the storage has failed for too long, now or under a unit that is being written.
        """
        if self._writers is not None:
            self._writers.settle()
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
        for name in touched:
            self._commit_if_whole(name)
        return self._told()

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
            self._open.setdefault(end["unit"], OpenUnit()).num_images = end["ordinal"]

    def _is_fresh(self, name: str, ordinal: int, position: int, siblings: int) -> bool:
        """Whether a row is awaited and has not come before; it has now."""
        if not self._is_awaited(name):
            return False
        opened = self._open.setdefault(name, OpenUnit())
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
        self._fresh_bytes += asked.nbytes
        is_old = self._num_fresh >= PART_ROWS or time.monotonic() - self._since >= PART_S
        if is_old or self._fresh_bytes >= PART_BYTES:
            self._make_room(self._fresh_bytes)
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
        self._num_fresh = self._fresh_bytes = 0
        ours = {n: o for n, o in self._open.items() if o.fresh and is_kept(self._units[n])}
        if not ours:
            return
        rows = {name: pa.concat_tables(opened.fresh) for name, opened in ours.items()}
        kept = self._parts.put(rows, {name: self._units[name].as_read for name in ours})
        for name, opened in ours.items():
            opened.keep(kept[name], rows[name])
            opened.fresh = []

    def _commit_if_whole(self, name: str) -> None:
        opened = self._open.get(name)
        if opened is None or not opened.is_whole:
            return
        self._sort()
        self._make_room(opened.nbytes)
        del self._open[name]
        self._done.add(name)
        self._ledger.will_put(name)
        try:
            self._commit(self._units[name], opened)
        except _UNUSABLE as error:
            self._not_committed(name, f"its table cannot be made: {first_line(error)}")

    def _commit(self, unit: Unit, opened: OpenUnit) -> None:
        if unit.retry is not None and not opened.nbytes and unit.name not in self._ledger.records:
            # Its last rows went to another unit's table (standing.py).
            self._ledger.took(unit.name, None)
            self._news.append(unit.name)
            return
        num_copied = 0
        if opened.copies:
            assert self._standing is not None
            copied = self._standing.copied(pa.concat_tables(opened.copies), unit)
            opened.keep(Held(copied), copied)
            num_copied = copied.num_rows
        commit = UnitCommit(
            self._ledger, unit, opened.rows(), num_images=opened.num_images or 0, keep=self._keep,
            run=self._run, with_images=self._on_commit is not None, check=self._check,
        )  # fmt: skip
        took = partial(self._took, unit, opened.came.num_images, num_copied)
        if self._standing is not None and commit.is_complete:
            with self._standing.move(unit, commit.table()):
                took(partial(commit.put, self._ledger.patience))
        elif self._writers is None:
            took(partial(commit.put, self._ledger.patience))
        else:
            self._writers.submit(commit.put, took, commit.nbytes)

    def _took(
        self, unit: Unit, num_images: int, num_copied: int, result: Callable[[], Committed]
    ) -> None:
        """Take note of what came of a unit's table and record."""
        try:
            done = result()
        except _UNUSABLE as error:
            self._not_committed(unit.name, f"its table cannot be made: {first_line(error)}")
            return
        except (GivenUp, CancelledError):
            self._not_committed(unit.name)
            return
        except BaseException:
            self._not_committed(unit.name)
            raise
        self._ledger.took(unit.name, done.record, is_committed=done.is_complete)
        if not done.is_complete:
            self.limited.append(done.record)
        elif unit.members:
            self._ledger.remember(unit)
        self.tally.units += 1
        self.tally.images_of_units += num_images
        if unit.num_rows is None and unit.num_bytes:
            self.tally.bytes_of_shards += unit.num_bytes
            self.tally.images_of_shards += num_images
        self.tally.rows_copied += num_copied
        self._parts.drop(unit.name)
        if self._on_commit is not None and done.images is not None:
            self._on_commit(unit.name, done.images)
        self._news.append(unit.name)
        self._ledger.manifest.gather()

    def _not_committed(self, name: str, why: str | None = None) -> None:
        """The unit is open still; with `why`, for the rest of the run."""
        self._ledger.took(name, None)
        self._done.discard(name)
        if why is not None:
            self.tally.failed_units[name] = why

    def _told(self) -> list[str]:
        told, self._news = self._news, []
        return told

    def _make_room(self, num_bytes: int) -> None:
        """Wait until so much more may be in flight."""
        if self._writers is not None:
            self._writers.room(num_bytes)

    def _later(self, job: Callable[[Patience], Any], num_bytes: int) -> Future[Any] | None:
        """Have a part written or deleted."""
        if self._writers is None:
            job(self._ledger.patience)
            return None
        return self._writers.submit(job, _raise_what_failed, num_bytes)

    def close(self) -> None:
        """All rows that there are have come: units that are not whole have failed. What is in flight is
        waited for."""
        if self._writers is not None:
            self._writers.drain()
        for name in self._units.keys() - self._done - self.tally.failed_units.keys():
            limit = self._units[name].limit
            if limit is not None and self.tally.images >= limit and name not in self._open:
                continue  # the run had its images before it came to this unit
            opened = self._open.pop(name, OpenUnit())
            end = "its end" if opened.num_images is None else f"{opened.num_images}"
            self.tally.failed_units[name] = (
                f"rows of {opened.came.num_images} images came back and not {end}; they were lost on "
                "the way, which is a defect of llava-batch"
            )
        self._ledger.rest()

    def end(self, *, cancel: bool = False) -> None:
        """The run ends here, whatever ended it: what is in flight is waited for, but no storage that is away;
        with `cancel`, what has not begun never does. To be called again as often as one likes."""
        if self._writers is None:
            return
        self._writers.end(cancel=cancel)
        while self._writers.is_busy:
            with suppress(OSError, OutputConflict):  # what ended the run is told
                self._writers.settle()


def _raise_what_failed(result: Callable[[], Any]) -> None:
    with suppress(GivenUp, CancelledError):
        result()


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
