"""Changes: this run's units set against what the folder holds → what is to be answered.

A unit is committed, open, or was answered from an input that has changed since: a shard is then
answered again whole, of loose files only those that changed, and what vanished keeps its answers.
`--on-change` says otherwise (`refuse_changes`). A `--limit` run leaves changed units as they are:
it might have less of them than there is. Runs in the driver only; writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow.compute as pc

from llava_batch.ids import name_in_unit, name_of
from llava_batch.unit import Stamp, Unit, source_of, unpack_rows
from llava_batch.write.ledger import Ledger
from llava_batch.write.record import Record
from llava_batch.write.refuse_changes import (
    Compared,
    refuse_another_folder,
    refuse_another_place,
    refuse_any,
    refuse_too_much,
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done: `todo` has open and changed units in order, then those with rows in error."""

    todo: list[Unit]
    num_done: int
    """Units that were answered before and stand, but for their rows in error."""
    num_changed: int
    """Units answered before from an input that has changed since, which are answered again."""
    num_kept: int
    """Such units that keep their answers."""
    standing: list[Record] = field(default_factory=list)
    """Answered units of keyed tables, rows of which may come again in `todo`; see `standing`."""


def compare(
    ledger: Ledger,
    units: Sequence[Unit],
    *,
    on_change: str | None = None,
    overwrite: bool = False,
    limit: int | None = None,
    retry_errors: bool = False,
) -> Work:
    """What is to be answered of all `units` of this run's input.

    Tables of an input that now makes other units (a Parquet file grown until it is split) are gone
    when the run begins; with `overwrite` those of other settings or format too.

    Raises:
        OutputConflict: a unit that was answered from another place, and has other content there.
        UsageError: an input that changed, or too much of it, as `on_change` says.
    """
    refuse_another_folder(ledger, units)
    compared = [c for c in (_compared(ledger, unit) for unit in units) if c is not None]
    changed = [c for c in compared if c.is_changed]
    others, moved = _vanished(ledger, units, compared)
    stay = on_change == "keep" or limit is not None
    if on_change is None and not overwrite:
        refuse_another_place(ledger, changed)
        if not stay:
            refuse_too_much(ledger, changed, others)
    if on_change == "refuse":
        refuse_any(changed, [*others, *moved] if any(c.is_open for c in compared) else others)
    if stay:
        answered = {record.input for record in others}
        tables = {unit.input for unit in units if unit.of_table}
        # `keep`: files of a table that vanished keep theirs, beside those of new ones.
        answered = answered - tables if limit is None else answered | {r.input for r in moved}
        compared = [_kept(c) for c in compared if not (c.is_open and c.unit.input in answered)]
    else:
        ledger.retire(others)
    if overwrite:
        ledger.retire(_records_of_vanished_files(ledger, units))
        ledger.retire(_records_of_another_run(ledger, {c.unit.name for c in compared}))
    for one in compared:
        if one.unit.members and not (one.is_open or one.is_changed):
            ledger.note(one.unit)
    count = len(changed) + len(others)
    todo = _limited(_todo(ledger, compared, retry_errors=retry_errors), limit)
    reads_keys = any(u.id_base != u.name and u.retry is None for u in todo)
    return Work(
        todo=todo,
        num_done=len([c for c in compared if not (c.is_open or c.is_changed)]),
        num_changed=0 if stay else count,
        num_kept=count if stay else 0,
        standing=[*moved, *_with_fewer_rows(ledger, compared)] if reads_keys else [],
    )


def _todo(ledger: Ledger, compared: list[Compared], *, retry_errors: bool) -> list[Unit]:
    if retry_errors:
        compared = [_with_errors(ledger, c) for c in compared]
    first = [c for c in compared if c.is_open or c.is_changed]
    rest = [c for c in compared if not (c.is_open or c.is_changed) and c.unit.retry]
    return [c.unit for c in (*first, *rest)]


def _limited(units: list[Unit], limit: int | None) -> list[Unit]:
    """The first of `units`, as many as `limit` images may lie in: only of loose files is it known how
    many there are. The reader stops where it has them."""
    if limit is None:
        return units
    limited, sure = [], 0
    for unit in units:
        if sure >= limit:
            break
        limited.append(replace(unit, limit=limit))
        sure += len(unit.members) if unit.retry is None else 0
    return limited


def _compared(ledger: Ledger, unit: Unit) -> Compared | None:
    """The unit as the folder knows it; None for an open one of which no file is there any more."""
    gone = frozenset(
        name_in_unit(member, None)
        for member, stamp in zip(unit.members, unit.stamps, strict=True)
        if stamp is None
    )
    committed = ledger.is_committed(unit)
    record = ledger.answered(unit.name)
    if committed:
        is_changed = record is not None and _has_rows_again(record, unit)
        return Compared(unit=unit, record=record, is_changed=is_changed, gone=gone)
    if unit.members and gone and ledger.is_committed(left := _without_gone(unit)):
        # A `forget` was killed before it wrote down that these are all.
        return Compared(unit=left, record=ledger.answered(unit.name))
    if record is None:
        left = _without_gone(unit)
        return Compared(unit=left) if left.members or not unit.members else None
    if not unit.members:
        return Compared(unit=unit, record=record, is_changed=True)
    return _compared_files(ledger, unit, record, gone)


def _has_rows_again(record: Record, unit: Unit) -> bool:
    """Whether a lake table's file has rows that were deleted when it was answered (a table that was put
    back as it was); one that has fewer rows now keeps its answers."""
    if not record.deleted:
        return False
    before = unpack_rows(record.deleted_rows)
    return bool(len(np.setdiff1d(before, unpack_rows(unit.deleted), assume_unique=True)))


def _without_gone(unit: Unit) -> Unit:
    """An open unit of the files that are there: nobody was promised the others."""
    there = {m: s for m, s in zip(unit.members, unit.stamps, strict=True) if s is not None}
    if len(there) == len(unit.members):
        return unit
    return _stamped(replace(unit, members=tuple(there)), tuple(there.values()))


def _compared_files(ledger: Ledger, unit: Unit, record: Record, gone: frozenset[str]) -> Compared:
    """A unit of loose files, some of which vanished or changed since it was answered."""
    before = ledger.stamps(unit)
    at_rest = _stamped(unit, tuple(now or b for now, b in zip(unit.stamps, before, strict=True)))
    if ledger.is_committed(at_rest):
        return Compared(unit=at_rest, record=ledger.answered(unit.name), gone=gone)
    # What a kill, or an older version, left apart from its record says nothing of what changed.
    known = source_of(unit.members, before) == record.source
    changed = frozenset(
        name_in_unit(member, None)
        for member, now, was in zip(unit.members, unit.stamps, before, strict=True)
        if now is not None and not (known and now == was)
    )
    if not changed:
        return Compared(unit=replace(unit, source=record.source), record=record, gone=gone)
    if len(changed) < len(unit.members):
        unit = replace(ledger.as_answered(at_rest), retry=changed, changed=changed)
    return Compared(unit=unit, record=record, is_changed=True, gone=gone)


def _stamped(unit: Unit, stamps: tuple[Stamp | None, ...]) -> Unit:
    return replace(unit, stamps=stamps, source=source_of(unit.members, stamps))


def _kept(compared: Compared) -> Compared:
    """A changed unit as what it was answered from."""
    if not compared.is_changed or compared.record is None:
        return compared
    unit = replace(compared.unit, source=compared.record.source, retry=None, changed=frozenset())
    return replace(compared, unit=unit, is_changed=False)


def _with_errors(ledger: Ledger, compared: Compared) -> Compared:
    """The unit set to read the images of its rows in error too, unless all of it is read anyway."""
    unit, record = compared.unit, compared.record
    answered_whole = record is None or (compared.is_changed and unit.retry is None)
    table = None
    if record is not None and record.errors and not answered_whole:
        table = ledger.read_table(unit.name)
    if table is None:
        return compared
    bad = table.filter(pc.equal(table["status"], "error"))["id"].to_pylist()
    names = frozenset(name_of(ident, unit.id_base) for ident in bad) - compared.gone
    again = replace(ledger.as_answered(unit), retry=(unit.retry or frozenset()) | names)
    return replace(compared, unit=again)


def _vanished(
    ledger: Ledger, units: Sequence[Unit], compared: Sequence[Compared]
) -> tuple[list[Record], list[Record]]:
    """Records of inputs that make units of other names now: those that are answered again, and those of
    keyed tables, whose rows are known again.

    Files of a lake table that vanished leave their answers, unless new files came: these may hold the
    same rows, and where rows have no keys nobody can tell."""
    records = _records_of_other_units(ledger, units)
    tables = {unit.input for unit in units if unit.of_table}
    grown = {c.unit.input for c in compared if c.is_open}
    gone = _records_of_vanished_files(ledger, units)
    moved = [r for r in gone if ledger.answered(r.unit) is not None]
    known = {r.unit for r in gone}
    again = [
        r for r in records if r.unit not in known and (r.input not in tables or r.input in grown)
    ]
    return again, moved


def _records_of_vanished_files(ledger: Ledger, units: Sequence[Unit]) -> list[Record]:
    """Of all files that keyed tables had once and have no more, wherever they lay."""
    tables = {f"{unit.id_base}/" for unit in units if unit.id_base != unit.name}
    names = {unit.name for unit in units} if tables else set()
    below = (r for n, r in ledger.records.items() if any(n.startswith(t) for t in tables))
    return [r for r in below if r.unit not in names]


def _with_fewer_rows(ledger: Ledger, compared: Sequence[Compared]) -> list[Record]:
    """Of files of keyed tables that lost rows since, or are answered again: those may be in other files. Under
    `--overwrite` too, whose run may be killed before it comes to them."""
    keyed = ((c, _older(ledger, c)) for c in compared if c.unit.id_base != c.unit.name)
    return [
        record for c, record in keyed
        if record is not None and (c.is_changed or record.deleted_rows != c.unit.deleted)
    ]  # fmt: skip


def _older(ledger: Ledger, compared: Compared) -> Record | None:
    """The record of the unit's table that stands now, of whatever settings."""
    record = compared.record or ledger.records.get(compared.unit.name)
    return record if record is not None and ledger.has_table(record) else None


def _records_of_other_units(ledger: Ledger, units: Sequence[Unit]) -> list[Record]:
    """Of inputs that make units of other names now."""
    names, inputs = {unit.name for unit in units}, {unit.input for unit in units}
    return [r for r in ledger.records.values() if r.unit not in names and r.input in inputs]


def _records_of_another_run(ledger: Ledger, names: set[str]) -> list[Record]:
    """Of units that this run does not answer, with other settings or in another format."""
    records = ledger.records.values()
    return [r for r in records if r.unit not in names and not ledger.is_of_this_run(r)]
