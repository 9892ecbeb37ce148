"""When a run is refused for what changed of its input since it was answered.

By `--on-change refuse` any change is. Without the flag, a unit's name that means another place with
other content is, and more than a tenth of the answered rows that would be answered again: that is
more often a lake copied without its times than one that is new.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_batch.errors import OutputConflict, UsageError, counted
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger
from llava_batch.write.record import Record

MOST_AGAIN = 0.1
"""The share of the answered rows over which they are not answered again unasked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One unit as it is to be answered; with a record, it was answered before."""

    unit: Unit
    record: Record | None = None
    is_changed: bool = False
    gone: frozenset[str] = frozenset()
    """Names of its loose files that are not there any more."""

    @property
    def is_open(self) -> bool:
        return self.record is None

    @property
    def rows_again(self) -> int:
        """How many answered rows would be replaced; where only some files changed, in proportion."""
        if self.record is None or self.unit.retry is None:
            return self.record.rows if self.record else 0
        return -(-self.record.rows * len(self.unit.retry) // max(self.record.images, 1))


def refuse_another_folder(ledger: Ledger, units: Sequence[Unit]) -> None:
    """Refuse loose files of a folder that has nothing of one of that name answered before."""
    there: dict[str, bool] = {}
    other: dict[str, Unit] = {}
    for unit in units:
        record = ledger.answered(unit.name)
        if not unit.members or record is None:
            continue
        same = record.input == unit.input or any(unit.stamps)
        there[unit.input] = there.get(unit.input, False) or same
        other.setdefault(unit.input, unit)
    for place, unit in other.items():
        if not there[place]:
            raise OutputConflict(
                f"--input {unit.shown}: none of the files that the output's unit {unit.name} was "
                "made of is there; give another --output for another folder of that name"
            )


def refuse_another_place(ledger: Ledger, changed: list[Compared]) -> None:
    """Refuse a unit that was answered from another place, and has other content here."""
    for one in changed:
        if one.record is not None and one.unit.input != one.record.input:
            raise OutputConflict(
                f"--input {one.unit.shown}: {ledger.out.shown} holds unit {one.unit.name} answered "
                f"from {one.record.input.partition(':')[2]}; give another --output, --on-change keep "
                "if they are the same, or --on-change answer to replace it"
            )


def refuse_any(changed: list[Compared], others: list[Record]) -> None:
    """Refuse whatever would be answered again; `others` are of inputs that make other units now."""
    names = [*(c.unit.name for c in changed), *(r.unit for r in others)]
    if names:
        raise UsageError(
            f"--on-change refuse: the input of {counted(len(names), 'unit')} changed since it was answered, "
            f"{names[0]} first; give --on-change answer to answer it again, or keep"
        )


def refuse_too_much(ledger: Ledger, changed: list[Compared], others: list[Record]) -> None:
    """Refuse to answer much of what is answered again, unasked."""
    standing = [ledger.answered(name) for name in ledger.records]
    total = sum(record.rows for record in standing if record is not None)
    lost = [record for record in others if ledger.answered(record.unit) is not None]
    again = sum(c.rows_again for c in changed) + sum(record.rows for record in lost)
    if again > MOST_AGAIN * total:
        names = [*(c.unit.name for c in changed), *(r.unit for r in lost)]
        raise UsageError(
            f"--on-change: {again} of {total} answered rows would be answered again: the input of "
            f"{counted(len(names), 'unit')} changed or makes other units now, {names[0]} first; give --on-change "
            "answer if that is meant, or keep"
        )
