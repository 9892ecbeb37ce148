"""publish(ledger, table): the table becomes what stands in the folder, in one commit; nothing if it is that.

What the table holds is counted by (unit, unit_version): from the note of the commit that is its newest, or
else from its rows, of which two columns are read. A unit is current where all its rows are there, of one
version; so rows that another writer deleted come back. Rows of another folder are never touched, unless
`overwrite`. Runs in the driver; memory is the names of the units and one unit's table.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from llava_batch.errors import OutputConflict
from llava_batch.write.ledger import Ledger
from llava_batch.write.publish.change import Change, Conflict, LakeTable, Newest, PublishFailed
from llava_batch.write.publish.columns import UNIT_VERSION, is_same, published_schema, rows_for
from llava_batch.write.publish.note import Units, folder_id, make_folder_id, read_note, write_note
from llava_batch.write.record import Record

_TRIES = 8
_BATCH_ROWS = 8192
_SIGNAL_S = 0.3
"""A signal that another thread was given is heeded after this time."""
MOST_NAMED = 2_000
"""Units that a commit names whose rows go; for more, all of the table is written anew: a predicate of
10,000 names takes deltalake seconds, and ever longer."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What came of one publication; without `publication` the table had everything already."""

    table: str
    version: str | None
    """Delta's version or Iceberg's snapshot; None where there is no table, for there are no rows."""
    publication: str | None = None
    units_added: int = 0
    units_replaced: int = 0
    units_removed: int = 0
    rows_written: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def publish(
    ledger: Ledger,
    table: LakeTable,
    *,
    said: dict[str, str],
    overwrite: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Published:
    """Bring what stands in the ledger's folder into `table`; `said` is for the commit's own metadata, and
    `check` is called before each unit and may raise.

    Raises:
        OutputConflict: the table holds rows of another folder, and not `overwrite`.
        PublishFailed: the table's library or its storage failed, or others committed all the time.
    """
    for attempt in range(_TRIES):
        try:
            return _publish(ledger, table, said, overwrite=overwrite, check=check)
        except Conflict:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.1 * 2**attempt * (1 + secrets.randbelow(100) / 100))
    raise AssertionError


def refuse_another_folders(ledger: Ledger, table: LakeTable, *, overwrite: bool = False) -> None:
    """Refuse a table that `publish` would refuse, before anything is answered. Writes nothing.

    Raises:
        OutputConflict: it holds rows of another folder, or is of another kind.
        UsageError: a kept column that a published table cannot have.
        PublishFailed: it cannot be read.
    """
    newest = table.open()
    if newest is not None:
        _held(ledger, table, newest, folder_id(ledger), overwrite=overwrite)


def _publish(
    ledger: Ledger,
    table: LakeTable,
    said: dict[str, str],
    *,
    overwrite: bool,
    check: Callable[[], None],
) -> Published:
    folder = make_folder_id(ledger)
    newest = table.open()
    held: dict[str, Units] = {}
    if newest is not None:
        held = _held(ledger, table, newest, folder, overwrite=overwrite)
    records = {r.unit: r for r in ledger.standing_records() if r.rows}
    wanted = {unit: (f"{folder}-{r.digest}", r.rows) for unit, r in records.items()}
    schema = published_schema(ledger.keep or pa.schema([]))
    other_columns = newest is not None and not is_same(newest.schema, schema)
    current = {u for u, one in wanted.items() if held.get(u) == {one[0]: one}}
    gone = held.keys() - wanted.keys()
    replaced = held.keys() & wanted.keys() - current
    if not other_columns and current == wanted.keys() == held.keys():
        return Published(table=table.shown, version=None if newest is None else newest.version)
    foreign = any(not v.startswith(f"{folder}-") for versions in held.values() for v in versions)
    many = len(gone | replaced) > MOST_NAMED
    whole = other_columns or foreign or many or not current & held.keys()
    coming = wanted.keys() if whole else wanted.keys() - current
    change = Change(
        schema=schema,
        publication=f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}",
        folder=folder,
        going=sorted(gone | replaced),
        adds=bool(coming),
        whole=whole,
        said={**said, "llava_batch.folder": folder},
    )
    write_note(ledger, table, change.publication, wanted)
    rows = _Rows(ledger, [records[unit] for unit in sorted(coming)], wanted, change, check)
    version = rows.into(table)
    return Published(
        table=table.shown,
        version=version,
        publication=change.publication,
        units_added=len(wanted.keys() - held.keys()),
        units_replaced=len(replaced),
        units_removed=len(gone),
        rows_written=rows.count,
    )


def _held(
    ledger: Ledger, table: LakeTable, newest: Newest, folder: str | None, *, overwrite: bool
) -> dict[str, Units]:
    """By unit, the versions of its rows that the table holds, each with how many."""
    if UNIT_VERSION not in newest.schema.names:
        raise OutputConflict(f"--publish {table.shown}: a table that no publication made "
                             "is there; give another name")  # fmt: skip
    note = read_note(ledger, table, newest.publication)
    if note is not None:
        return {unit: {one[0]: one} for unit, one in note.items()}
    held: dict[str, Units] = {}
    for unit, version, rows in table.counts():
        ours = folder is not None and (version or "").startswith(f"{folder}-")
        if not ours and not overwrite:
            raise OutputConflict(
                f"--publish {table.shown}: holds rows that {ledger.out.shown} did not publish (unit "
                f"{unit}); give another table, or --overwrite to replace all that it holds"
            )
        versions = held.setdefault(unit or "", {})
        versions[version or ""] = (version or "", versions.get(version or "", ("", 0))[1] + rows)
    return held


class _Rows:
    """The rows of some units as a stream, counted; what ends it early is told apart from what the
    library that reads it says."""

    def __init__(
        self,
        ledger: Ledger,
        records: list[Record],
        wanted: Units,
        change: Change,
        check: Callable[[], None],
    ) -> None:
        self.count = 0
        self._ledger, self._records, self._wanted = ledger, records, wanted
        self._change, self._check = change, check
        self._ended_by: BaseException | None = None
        self._stopped = False

    def into(self, table: LakeTable) -> str:
        """Commit them to the table; the new version.

        In a thread of its own: a library that waits in native code would keep the main one from heeding
        a signal, which here ends the rows, and with them what is not committed yet.
        """
        reader = pa.RecordBatchReader.from_batches(self._change.schema, self._batches())
        with ThreadPoolExecutor(1) as pool:
            try:
                committing = pool.submit(table.commit, self._change, reader)
                while not committing.done():
                    wait([committing], timeout=_SIGNAL_S)
                return committing.result()
            except KeyboardInterrupt:
                self._stopped = True
                raise
            except PublishFailed:
                if self._ended_by is not None:
                    raise self._ended_by from None
                raise

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for record in self._records:
                self._check()
                for batch in self._rows_of(record).to_batches(max_chunksize=_BATCH_ROWS):
                    if self._stopped:
                        raise KeyboardInterrupt
                    yield batch
                self.count += record.rows
            self._check()
            if self._stopped:
                raise KeyboardInterrupt
        except (Exception, KeyboardInterrupt) as error:
            self._ended_by = error
            raise

    def _rows_of(self, record: Record) -> pa.Table:
        table = self._ledger.read_table(record.unit)
        same = record.table_hash in ("", self._ledger.tables.hash(record.unit))
        if table is None or not same or table.num_rows != record.rows:
            raise PublishFailed(f"{self._ledger.out.shown}/{record.table}: is not what its record says "
                                "any more; run the job again")  # fmt: skip
        version = self._wanted[record.unit][0]
        return rows_for(table, self._change.schema, version, self._change.publication)
