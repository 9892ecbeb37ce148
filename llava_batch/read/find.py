"""Inputs → work units: what `--input` names, found, named and fingerprinted.

A unit is read, answered and committed as a whole: one tar, one Parquet file (a large one: a run of
row groups), one run of loose image files, one run of a text table's rows. Its name comes from its own path and from nothing else.
Every file under an input is in a unit, counted as left out by its kind, or skipped by a rule that is
counted too (`gather`). Runs in the driver, before any actor starts; opens no image.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from llava_batch.errors import UsageError
from llava_batch.read.gather import Found, Gathered
from llava_batch.read.kinds import KINDS
from llava_batch.read.loose_units import Answered, Members, loose_units, with_metadata
from llava_batch.read.reading import Fixed
from llava_batch.storage import Location
from llava_batch.unit import ROW_RULES, Unit

_HIDING = {"_": "%5F", ".": "%2E"}

_LOOKS_AT_ONCE = 16

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
) -> Inputs:
    """All that `inputs` name, in the order given and by path within each; `output` is no input. Of files
    in Hive partitions, those in `partitions` alone, where any are named.

    Raises:
        UsageError: as `gather` says; two units of one name; no partition that fits.
    """
    gathered = Gathered(output, partitions)
    for text in inputs:
        gathered.take(text)
    gathered.refuse_unfit()
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        made = pool.map(lambda shard: _shard_units(shard, before, rows, answered), gathered.shards)
        units = [unit for units in made for unit in units]
    for images in gathered.loose:
        found = loose_units(images, remembered, answered, _unit_name)
        units.extend(with_metadata(unit, gathered.metadata) for unit in found)
    return Inputs(
        units=_refuse_double_names(units),
        left_out=dict((gathered.left_out + gathered.strays()).most_common()),
        skipped=dict(gathered.skipped),
    )


def _shard_units(found: Found, before: Before, rows: Rows, answered: Answered) -> list[Unit]:
    """A shard's units; those that earlier runs made of it, where they did."""
    whole = Unit(
        name=_unit_name(os.path.splitext(found.name)[0]),
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


def _unit_name(name: str) -> str:
    """`name` with no part that begins as what readers of tables skip does."""
    parts = name.split("/")
    return "/".join(_HIDING.get(part[:1], part[:1]) + part[1:] for part in parts)


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
    return units
