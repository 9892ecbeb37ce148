"""Write: answer rows → one committed table per unit, in the unit's own order.

Rows come in any order and perhaps twice (a retried task); each is placed by its image's ordinal and
its own position, so a unit is whole exactly when its end row and all its rows are there. Holds the
rows of the units that are open at the moment, and no more. Runs in the driver.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.errors import first_line
from llava_batch.tables import BOOKKEEPING, KEEP, load_schema
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger, record_of
from llava_batch.write.unit_table import gathered, retried

_UNUSABLE = (ValueError, TypeError, LookupError, pa.ArrowException)
"""What making a table of rows raises where they do not fit it; what its storage raises is OSError."""


@dataclass
class Tally:
    """What has been answered so far in this run."""

    images: int = 0
    rows: int = 0
    images_without_question: int = 0
    rows_with_several_images: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    units: int = 0
    failed_units: dict[str, str] = field(default_factory=dict)
    answer_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def num_errors(self) -> int:
        return self.errors.total()


@dataclass
class _Open:
    """A unit whose rows are coming in."""

    parts: list[pa.Table] = field(default_factory=list)
    num_images: int | None = None
    seen: set[tuple[int, int]] = field(default_factory=set)
    siblings: dict[int, int] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        if self.num_images is None or len(self.siblings) < self.num_images:
            return False
        return len(self.seen) == sum(max(n, 1) for n in self.siblings.values())


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
    ) -> None:
        self.tally = Tally()
        self._ledger = ledger
        self._units = {unit.name: unit for unit in units}
        self._open: dict[str, _Open] = {}
        self._done: set[str] = set()
        self._keep = keep
        self._run = run
        self._on_commit = on_commit

    def add(self, batch: pa.Table) -> list[str]:
        """Take in answer rows of any units; returns the names of the units committed by it."""
        committed = []
        for name in pc.unique(batch["unit"]).to_pylist():
            if self._add(name, batch.filter(pc.equal(batch["unit"], name))):
                committed.append(name)
        return committed

    def _add(self, name: str, rows: pa.Table) -> bool:
        unit = self._units.get(name)
        if unit is None or name in self._done or name in self.tally.failed_units:
            return False
        opened = self._open.setdefault(name, _Open())
        for end in rows.filter(rows["end"]).to_pylist():
            opened.num_images = end["ordinal"]
            if end["error_code"]:
                self.tally.failed_units[name] = end["error_message"]
                del self._open[name]
                return False
        fresh = self._fresh(opened, rows.filter(pc.invert(rows["end"])))
        if fresh.num_rows:
            opened.parts.append(fresh)
        if not opened.is_whole:
            return False
        del self._open[name]
        try:
            table = self._commit(unit, opened)
        except _UNUSABLE as error:
            self.tally.failed_units[name] = f"its table cannot be made: {first_line(error)}"
            return False
        self._done.add(name)
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
                f"rows of {len(opened.siblings)} images came back and not {end}; they were lost on "
                "the way, which is a defect of llava-batch"
            )

    def _fresh(self, opened: _Open, rows: pa.Table) -> pa.Table:
        """The rows that have not come before, counted."""
        keep = []
        places = zip(
            *(rows[n].to_pylist() for n in ("ordinal", "position", "siblings")), strict=True
        )
        for i, (ordinal, position, siblings) in enumerate(places):
            if (ordinal, position) in opened.seen:
                continue
            opened.seen.add((ordinal, position))
            self.tally.images += ordinal not in opened.siblings
            opened.siblings[ordinal] = siblings
            keep.append(i)
        if len(keep) < rows.num_rows:
            rows = rows.take(pa.array(keep, pa.int64()))
        asked = rows.filter(pc.greater(rows["siblings"], 0))
        self.tally.rows += asked.num_rows
        self.tally.images_without_question += rows.num_rows - asked.num_rows
        self.tally.errors.update(c for c in asked["error_code"].to_pylist() if c)
        self.tally.rows_with_several_images += asked.filter(
            pc.greater(asked["num_images"], 1)
        ).num_rows
        turns = pc.list_flatten(asked["turns"])  # the row's own columns are its last turn's alone
        self.tally.answer_tokens += pc.sum(pc.struct_field(turns, "answer_tokens")).as_py() or 0
        self.tally.prompt_tokens += pc.sum(asked["prompt_tokens"]).as_py() or 0
        return asked

    def _commit(self, unit: Unit, opened: _Open) -> pa.Table:
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
        self._ledger.write_table(unit, table)
        if complete:
            self._ledger.commit(record_of(self._ledger, unit, table, num_images))
            if unit.members:
                self._ledger.remember(unit)
        self.tally.units += 1
        return table

    def _table(self, opened: _Open) -> pa.Table:
        """The unit's rows in order, with the published schema."""
        schema = pa.schema([*load_schema("answers"), *self._keep])
        if not opened.parts:
            return schema.empty_table()
        places = pa.concat_tables([part.select(["ordinal", "position"]) for part in opened.parts])
        order = np.lexsort((places["position"].to_numpy(), places["ordinal"].to_numpy()))
        rows = gathered(opened.parts, order).drop_columns(BOOKKEEPING.names)
        rows = rows.rename_columns([n.removeprefix(KEEP) for n in rows.schema.names])
        return rows.select(schema.names).cast(schema)


def _refuse_equal_ids(table: pa.Table) -> None:
    if len(pc.unique(table["id"])) == table.num_rows:
        return
    ident, count = Counter(table["id"].to_pylist()).most_common(1)[0]
    raise ValueError(f"the id {ident} stands {count} times; give its rows keys of their own")
