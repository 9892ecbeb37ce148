"""Which answers of a folder are of rows that a table of the lake no longer has, in its newest snapshot.

With keys a row is looked for in the whole table, whatever file it stands in now. Without, the rows that a
file's deletions name are gone, and a file that is not there any more takes its answers with it where nothing
of the table is left to answer; before that nobody can tell what its writer moved.
"""

import base64
from collections.abc import Sequence

import numpy as np

from llava_batch.ids import name_of
from llava_batch.read.kinds import key_values
from llava_batch.read.lake.keys import are_among, key_hashes
from llava_batch.read.lake.table import Opened
from llava_batch.unit import Unit, unpack_rows
from llava_batch.write.forget import Forgetting
from llava_batch.write.ledger import Ledger
from llava_batch.write.record import Record


def table_input(table: Opened) -> str:
    """Where a table lies, as the records of its files have it."""
    at = table.place.at
    return table.units[0].input if table.units else f"{at.fs.type_name}:{at.path}"


def gone_from_table(
    ledger: Ledger, input: str, files: Sequence[Unit], key_column: str | None
) -> tuple[list[Forgetting], list[str]]:
    """What goes of the answers from one table, whose `files` are those of its newest snapshot; and the
    units of which nothing can be told before the next run.

    Raises:
        OSError: the storage failed.
    """
    there = {unit.name: unit for unit in files}
    lost = [r for _, r in sorted(ledger.records.items()) if r.input == input and _lost(r, there)]
    if not lost:
        return [], []
    if key_column is not None:
        hashes = key_hashes(files, key_column, key_values)
        found = [_without_keys(ledger, r, there.get(r.unit), hashes) for r in lost]
        return [one for one in found if one.rows], []
    standing = [_without_rows(ledger, r, there[r.unit]) for r in lost if r.unit in there]
    vanished = [r for r in lost if r.unit not in there]
    if any(unit.name not in ledger.records for unit in files):
        return standing, [r.unit for r in vanished]
    whole = [Forgetting(record=r, rows=r.rows, names=None) for r in vanished]
    return [one for one in (*standing, *whole) if one.rows], []


def _lost(record: Record, there: dict[str, Unit]) -> bool:
    """Whether the unit's file is gone, or has other deleted rows than when it was answered."""
    unit = there.get(record.unit)
    return unit is None or unit.deleted != record.deleted_rows


def _without_keys(
    ledger: Ledger, record: Record, unit: Unit | None, hashes: np.ndarray
) -> Forgetting:
    """The unit's rows whose keys are none of the table's."""
    table = ledger.read_table(record.unit)
    ids: list[str] = [] if table is None else table["id"].to_pylist()
    keys = [] if table is None else table["key"].to_pylist()
    base = _base(record.unit, ids)
    stand = are_among(keys, hashes)
    gone = [name_of(i, base) for i, stands in zip(ids, stand, strict=True) if not stands]
    return Forgetting(
        record=record, rows=len(gone), names=frozenset(gone), keyed_by=base, deleted=_deleted(unit)
    )


def _base(unit: str, ids: Sequence[str]) -> str:
    """What the unit's ids begin with: the table's name, which its own begins with."""
    base = unit
    while base and ids and not ids[0].startswith(f"{base}/"):
        base = base.rpartition("/")[0]
    return base


def _without_rows(ledger: Ledger, record: Record, unit: Unit) -> Forgetting:
    """The unit's rows that were deleted since it was answered, by their numbers."""
    since = np.setdiff1d(unpack_rows(unit.deleted), unpack_rows(record.deleted_rows))
    names = frozenset(map(str, since.tolist()))
    table = ledger.read_table(record.unit)
    ids: list[str] = [] if table is None else table["id"].to_pylist()
    rows = sum(name_of(i, record.unit) in names for i in ids)
    return Forgetting(record=record, rows=rows, names=names, deleted=_deleted(unit))


def _deleted(unit: Unit | None) -> str | None:
    return None if unit is None else base64.b64encode(unit.deleted).decode()
