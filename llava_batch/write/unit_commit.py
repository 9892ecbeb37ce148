"""UnitCommit: one whole unit's rows → its table, then its record, in the storage.

Made on the driver's own thread and done (`put`) on any: it reads what the ledger knows and changes nothing of
it; `Ledger.took` does, with what came of it. Rows that are many are read, put in order, encoded and written a row
group at a time, so that memory holds none but those.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.patience import Patience
from llava_batch.tables import BOOKKEEPING, KEEP, load_schema
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger
from llava_batch.write.record import Record
from llava_batch.write.scratch import Rows
from llava_batch.write.unit_table import chunks, retried

IMAGE = ("unit", "key", "image_sha256")
"""The columns that say of which image a row is."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What came of it."""

    record: Record
    is_complete: bool
    images: pa.Table | None
    """The rows' `IMAGE` columns, where they were asked for."""


class UnitCommit:
    """The rows of `unit`, whole, to be committed; `check` is asked before each write."""

    def __init__(
        self,
        ledger: Ledger,
        unit: Unit,
        rows: tuple[list[Rows], np.ndarray],
        *,
        num_images: int,
        keep: pa.Schema,
        run: dict[str, Any],
        with_images: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.unit = unit
        self.is_complete = unit.limit is None or unit.retry is not None
        self._ledger, self._check, self._run = ledger, check, run
        self._parts, self._order = rows
        self._num_images = num_images
        self._schema = pa.schema([*load_schema("answers"), *keep])
        self._with_images = with_images
        self._images: list[pa.Table] = []
        self._table: pa.Table | None = None
        if unit.retry is not None:
            self._num_images = ledger.records[unit.name].images

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    def table(self) -> pa.Table:
        """The whole table, in memory from here on; where only some rows were answered again, with all the others."""
        if self._table is None:
            came = pa.concat_tables(self._published())
            self._table = came if self.unit.retry is None else self._retried(came)
        return self._table

    def put(self, patience: Patience) -> Committed:
        """Write the table and, where it is complete, its record.

        Raises:
            ValueError, TypeError, LookupError, pa.ArrowException: no table can be made of the rows.
            OSError: the storage has failed for longer than `patience`.
        """
        if self.unit.retry is not None:
            self.table()
        tables, count = self._ledger.tables, _Count()
        self._check()
        size, hashed = tables.put(
            self.unit.name, lambda: self._counted(count), patience, num_bytes=self.nbytes
        )
        record = self._ledger.record_of(
            self.unit, rows=count.rows, images=self._num_images, errors=count.errors,
            size=size, hashed=hashed,
        )  # fmt: skip
        if self.is_complete:
            self._check()
            self._ledger.put_record(record, patience)
        images = pa.concat_tables(self._images) if self._with_images else None
        return Committed(record=record, is_complete=self.is_complete, images=images)

    def _counted(self, count: "_Count") -> Iterator[pa.Table]:
        """The table, a row group at a time; its rows are counted on the way."""
        count.begin()
        self._images = []
        said = {**(load_schema("answers").metadata or {}), **self._footer()}
        for table in [self._table] if self._table is not None else self._published():
            count.take(table)
            if self._with_images:
                self._images.append(table.select(IMAGE))
            yield table.replace_schema_metadata(said)
        count.refuse_equal_ids()

    def _published(self) -> Iterator[pa.Table]:
        """The unit's rows in order, with the published schema."""
        if not self._parts:
            yield self._schema.empty_table()
            return
        for rows in chunks(self._parts, self._order):
            table = rows.replace_schema_metadata().drop_columns(BOOKKEEPING.names)
            table = table.rename_columns([n.removeprefix(KEEP) for n in table.schema.names])
            yield table.select(self._schema.names).cast(self._schema)

    def _retried(self, table: pa.Table) -> pa.Table:
        old = self._ledger.read_table(self.unit.name)
        if old is None:
            raise ValueError(f"{self._ledger.table_name(self.unit.name)} is no longer there")
        return retried(old.select(table.schema.names), table, self.unit)

    def _footer(self) -> dict[str, str]:
        return self._ledger.footer(self.unit, complete=self.is_complete) | {
            "llava_batch.images": str(self._num_images),
            "llava_batch.model": self._run["model"],
            "llava_batch.run": json.dumps(self._run, sort_keys=True),
        }


class _Count:
    """The rows of one table, counted as they pass, in 8 bytes each."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.rows = 0
        self.errors: Counter[str] = Counter()
        self._ids: list[np.ndarray] = []

    def take(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self.errors.update(code for code in table["error_code"].drop_null().to_pylist())
        ids = table["id"]
        if len(pc.unique(ids)) < len(ids):
            self._refuse(Counter(ids.to_pylist()).most_common(1)[0])
        hashes = (hash(ident) for ident in ids.to_pylist())
        self._ids.append(np.fromiter(hashes, np.int64, len(ids)))

    def refuse_equal_ids(self) -> None:
        """Raise ValueError where two chunks have an id in common: of two ids by a hash of 64 bits."""
        hashes = np.concatenate(self._ids) if self._ids else np.zeros(0, np.int64)
        if len(np.unique(hashes)) < len(hashes):
            raise ValueError("ids stand twice; give its rows keys of their own")

    def _refuse(self, most: tuple[str, int]) -> None:
        raise ValueError(
            f"the id {most[0]} stands {most[1]} times; give its rows keys of their own"
        )
