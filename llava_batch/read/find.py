"""Inputs → work units: what `--input` names, found, named and fingerprinted.

A unit is read, answered and committed as a whole: one tar, one Parquet file (a large one: a run of
row groups), one run of loose image files, one run of a text table's rows. Its name comes from its own path and from nothing else.
Every file under an input is in a unit, counted as left out by its kind, or skipped by a rule that is
counted too (`gather`). Runs in the driver, before any actor starts; opens no image.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain

from llava_batch.errors import UsageError
from llava_batch.read.found import Found
from llava_batch.read.gather import Gathered
from llava_batch.read.kinds import KINDS
from llava_batch.read.lake.opened import open_tables
from llava_batch.read.lake.table import AsOf, Opened
from llava_batch.read.loose_units import Answered, Members, loose_units, with_metadata
from llava_batch.read.reading import Fixed
from llava_batch.read.unit_name import unit_name
from llava_batch.storage import Location
from llava_batch.unit import ROW_RULES, Unit

_LOOKS_AT_ONCE = 16
_LOOKS_OF_A_TIME = 4096
_NEWEST = AsOf()

Rows = Callable[[str], Fixed]
"""Given a text table's unit base (`list`), which rows earlier runs gave to its units, by unit name."""

Before = Callable[[Unit], int | None]
"""Given a shard whole: by which rules earlier runs made its units, from the file as it is; 0 where it
was one unit; None where no run has answered it so."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was found: every file is in one of `units`, or counted in one of the others."""

    units: list[Unit]
    left_out: dict[str, int]
    """Files that are not read, by kind (`.csv`, `broken links`), the most first; and rows of image metadata
    that belong to no image."""
    skipped: dict[str, int]
    """What a rule passes over, by rule; a hidden folder, or the output, counts as one."""
    tables: list[Opened] = field(default_factory=list)
    """Lake tables, each as of the one snapshot that is read."""


def find_units(inputs: Iterable[str], remembered: Members = lambda base: {}) -> list[Unit]:
    """The units alone of what `find` finds."""
    return find(inputs, remembered).units


def find(
    inputs: Iterable[str],
    remembered: Members = lambda base: {},
    before: Before = lambda whole: None,
    *,
    rows: Rows = lambda base: {},
    answered: Answered = lambda input: (),
    partitions: Sequence[str] = (),
    output: Location | None = None,
    as_of: AsOf = _NEWEST,
) -> Inputs:
    """All that `inputs` name, in the order given and by path within each; `output` is no input, and
    `as_of` says how tables of the lake are read. Of files in Hive partitions, those in `partitions`
    alone, where any are named.

    Raises:
        UsageError: as `Gathered` says; two units of one name; a table that cannot be read; no partition
            that fits.
    """
    return units_of(
        gather(inputs, partitions=partitions, output=output),
        remembered,
        before,
        rows=rows,
        answered=answered,
        as_of=as_of,
    )


def gather(
    inputs: Iterable[str], *, partitions: Sequence[str] = (), output: Location | None = None
) -> Gathered:
    """The files alone: it asks nothing of what is in them, and nothing of earlier runs.

    Raises:
        UsageError: as `Gathered` says; no partition that fits.
    """
    gathered = Gathered(output, partitions)
    for text in inputs:
        gathered.take(text)
    gathered.refuse_unfit()
    return gathered


def units_of(
    gathered: Gathered,
    remembered: Members = lambda base: {},
    before: Before = lambda whole: None,
    *,
    rows: Rows = lambda base: {},
    answered: Answered = lambda input: (),
    as_of: AsOf = _NEWEST,
) -> Inputs:
    """The units that gathered files make, as `find` says it."""
    # While the shards are known: what is one of them is no metadata of images.
    left_out, skipped = gathered.left_out + gathered.strays(), gathered.skipped
    metadata = gathered.metadata
    units = _units_of_shards(gathered.hand_over(), before, rows, answered)
    for images in gathered.loose:
        found = loose_units(images, remembered, answered, unit_name)
        units.extend(with_metadata(unit, metadata) for unit in found)
    tables = open_tables(gathered.tables, as_of)
    units.extend(unit for table in tables for unit in table.units)
    return Inputs(
        units=_refuse_double_names(units),
        left_out=dict(left_out.most_common()),
        skipped=dict(skipped),
        tables=tables,
    )


def _units_of_shards(
    shards: list[Found], before: Before, rows: Rows, answered: Answered
) -> list[Unit]:
    """The units of all shards, in their order; several at once where files are looked into. The shards are
    taken from the list as they become units: a hundred thousand of both are not held."""

    def made(shard: Found) -> list[Unit]:
        return _shard_units(shard, before, rows, answered)

    look = any(KINDS[shard.what].looks_for_units for shard in shards)
    units: list[Unit] = []
    shards.reverse()
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        while shards:  # 2 KB each while they wait
            some = [shards.pop() for _ in range(min(len(shards), _LOOKS_OF_A_TIME))]
            units += chain.from_iterable((pool.map if look else map)(made, some))
    return units


def _shard_units(found: Found, before: Before, rows: Rows, answered: Answered) -> list[Unit]:
    """A shard's units; those that earlier runs made of it, where they did."""
    whole = Unit(
        name=unit_name(os.path.splitext(found.name)[0]),
        kind=found.what,
        path=found.at.path,
        shown=found.at.shown,
        fs=found.at.fs,
        source=f"{found.size}-{found.mtime_ns}",
        partition=found.partition,
    )
    if found.partition:
        whole = replace(whole, name=_name_before(whole, answered))
    rules = before(whole)
    if rules == 0:
        return [whole]
    kind = KINDS[found.what]
    fixed = rows(whole.name) if kind.only_named else {}
    units = kind.units(replace(whole, rules=rules or ROW_RULES), found.size, fixed)
    return [replace(unit, rules=ROW_RULES) for unit in units]


def _name_before(whole: Unit, answered: Answered) -> str:
    """The name of a shard in a partition; where an earlier version answered it by a shorter one, counted
    from the folder that was given, that."""
    units = {*answered(whole.input)}
    parts = whole.name.split("/")
    names = ["/".join(parts[n:]) for n in range(len(parts))]
    return next((n for n in names if n in units or f"{n}-00000" in units), whole.name)


def _refuse_double_names(units: list[Unit]) -> list[Unit]:
    seen: dict[str, Unit] = {}
    for unit in units:
        other = seen.setdefault(unit.name, unit)
        if other is not unit:
            raise UsageError(
                f"--input {other.shown} and {unit.shown} would both be unit {unit.name}; "
                "rename one, or give the folder above both"
            )
    for unit in units:
        above = unit.name.rpartition("/")[0]
        while above and above not in seen:
            above = above.rpartition("/")[0]
        if above:
            raise UsageError(
                f"--input {seen[above].shown} and {unit.shown}: ids of unit {above} and of unit "
                f"{unit.name} could be the same; rename one"
            )
    _refuse_ids_below_a_table(units)
    return units


def _refuse_ids_below_a_table(units: list[Unit]) -> None:
    """A keyed table's ids are `<table>/<key>`, and a key may hold slashes: nothing else stands there."""
    bases = {unit.id_base: unit for unit in units if unit.id_base != unit.name}
    for unit in units if bases else ():
        above = unit.id_base if unit.id_base not in bases else unit.id_base.rpartition("/")[0]
        while above and above not in bases:
            above = above.rpartition("/")[0]
        if above:
            raise UsageError(
                f"--input {bases[above].shown} and {unit.shown}: ids of the table {above} and of unit "
                f"{unit.name} could be the same; rename one"
            )
