"""Forget: the answers of rows that the input no longer has are taken out of the folder.

`to_forget` says which, and changes nothing; `forget` does it, unit by unit: the table without the rows,
then its record, then which files the unit is made of. A kill between any two of them leaves a unit that the
next run, or the same call again, takes for what it is: no other row of it is answered again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from llava_batch.ids import name_in_unit, name_of
from llava_batch.unit import Unit, source_of
from llava_batch.write.ledger import Ledger
from llava_batch.write.record import Record
from llava_batch.write.unit_table import origin

Names = frozenset[str]
"""Names of images within their unit, as `ids.name_in_unit` makes them."""


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What goes of one unit."""

    record: Record
    rows: int
    names: Names | None
    """Of the images that go; None: the whole unit."""
    unit: Unit | None = None
    """A unit of loose files as it will be, without the files that are gone."""
    keyed_by: str | None = None
    """The lake table that the ids begin with; None: they begin with the unit's name."""
    deleted: str | None = None
    """Of a lake table's file that stands: `Record.deleted` as it will be."""

    @property
    def base(self) -> str:
        return self.keyed_by or self.record.unit

    def takes(self, image: str) -> bool:
        """Whether the image of this id (`ids.image_id`) goes."""
        name = image.removeprefix(f"{self.base}/")
        return image.startswith(f"{self.base}/") and (self.names is None or name in self.names)


def to_forget(
    ledger: Ledger,
    units: Sequence[Unit],
    *,
    is_gone: Callable[[Record], bool],
    names_in: Callable[[Unit], Names | None],
) -> list[Forgetting]:
    """What the folder holds of rows that the input, whose units are `units`, no longer has.

    `is_gone` says whether a unit that is not among them is one of the input that vanished; `names_in` gives
    the names that a shard holds which changed since it was answered, None where it cannot tell.
    """
    there = {unit.name: unit for unit in units}
    found = []
    for _, record in sorted(ledger.records.items()):
        unit = there.get(record.unit)
        if unit is None:
            if is_gone(record):
                found.append(Forgetting(record=record, rows=record.rows, names=None))
        elif unit.members:
            found += _gone_files(ledger, record, unit)
        elif unit.source != record.source and (names := names_in(unit)) is not None:
            found += _gone_rows(ledger, record, names)
    return found


def forget(ledger: Ledger, forgetting: Forgetting) -> None:
    """Take it out of the folder."""
    record, unit = forgetting.record, forgetting.unit
    if forgetting.names is None:
        ledger.forget(record)
        return
    table = ledger.read_table(record.unit)
    if table is None:  # it does not read, so every row of it is open
        ledger.forget(record)
        return
    names = _names(table, forgetting.base)
    left = table.filter(pa.array([name not in forgetting.names for name in names], pa.bool_()))
    if not left.num_rows and forgetting.keyed_by and forgetting.deleted is None:
        ledger.forget(record)  # the last rows of a file that the table has no more
        return
    if forgetting.deleted is not None:
        record = replace(record, deleted=forgetting.deleted)
    if left.num_rows == table.num_rows and (unit is None or unit.source == record.source):
        _remember(ledger, unit)
        return
    said = origin(table.schema)
    images = int(said["images"]) - len(set(names) & forgetting.names)
    source = said["source"] if unit is None else unit.source
    footer = dict(table.schema.metadata or {})
    footer |= {b"llava_batch.images": str(images).encode(), b"llava_batch.source": source.encode()}
    left = left.replace_schema_metadata(footer)
    ledger.replace(_recounted(record, left, images=images, source=source), left)
    _remember(ledger, unit)


def _remember(ledger: Ledger, unit: Unit | None) -> None:
    if unit is not None:
        ledger.remember(unit)


def _gone_files(ledger: Ledger, record: Record, unit: Unit) -> list[Forgetting]:
    """The rows of loose files that are not there any more; all of them: the whole unit."""
    gone = [m for m, stamp in zip(unit.members, unit.stamps, strict=True) if stamp is None]
    if not gone:
        return []
    if len(gone) == len(unit.members):
        return [Forgetting(record=record, rows=record.rows, names=None)]
    answered = dict(zip(unit.members, ledger.stamps(unit), strict=True))
    left = {member: stamp for member, stamp in answered.items() if member not in set(gone)}
    members, stamps = tuple(left), tuple(left.values())
    names = frozenset(name_in_unit(member, None) for member in gone)
    return [
        Forgetting(
            record=record,
            rows=_count(ledger, record, names),
            names=names,
            unit=replace(unit, members=members, stamps=stamps, source=source_of(members, stamps)),
        )
    ]


def _gone_rows(ledger: Ledger, record: Record, there: Names) -> list[Forgetting]:
    """The rows of a shard that it holds no more."""
    table = ledger.read_table(record.unit)
    if table is None:
        return []
    gone = [name for name in _names(table, record.unit) if name not in there]
    return [Forgetting(record=record, rows=len(gone), names=frozenset(gone))] if gone else []


def _count(ledger: Ledger, record: Record, names: Names) -> int:
    table = ledger.read_table(record.unit)
    return 0 if table is None else sum(name in names for name in _names(table, record.unit))


def _names(table: pa.Table, unit: str) -> list[str]:
    return [name_of(ident, unit) for ident in table["id"].to_pylist()]


def _recounted(record: Record, table: pa.Table, *, images: int, source: str) -> Record:
    codes = [code for code in table["error_code"].to_pylist() if code is not None]
    errors = {code: codes.count(code) for code in sorted(set(codes))}
    return replace(record, rows=table.num_rows, images=images, errors=errors, source=source)
