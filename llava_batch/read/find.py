"""Inputs → work units: what `--input` names, found, named and fingerprinted.

A unit is read, answered and committed as a whole: one tar, one Parquet file (a large one: a run of
row groups), one run of loose image files, one run of a text table's rows. Its name comes from its own path and from nothing else.
Every file under an input is in a unit, counted as left out by its kind, or skipped by a rule that is
counted too (`gather`). Runs in the driver, before any actor starts; opens no image.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count

from llava_batch.errors import UsageError
from llava_batch.read.gather import Found, Gathered
from llava_batch.read.kinds import KINDS, LOOSE
from llava_batch.read.reading import Fixed
from llava_batch.storage import Location
from llava_batch.unit import ROW_RULES, Unit, source_of

FILES_PER_UNIT = 1000
"""Loose image files in one unit; the most that a kill costs is the open units' answers."""

_HIDING = {"_": "%5F", ".": "%2E"}

_LOOKS_AT_ONCE = 16

Members = Callable[[str], dict[str, tuple[str, ...]]]
"""Given a folder's unit base (`photos`), the memberships that earlier runs fixed, by unit name."""

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
    """Files that are not read, by kind (`.csv`, `broken links`), the most first."""
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
    output: Location | None = None,
) -> Inputs:
    """All that `inputs` name, in the order given and by path within each; `output` is no input.

    Raises:
        UsageError: as `gather` says; two units of one name.
    """
    gathered = Gathered(output)
    for text in inputs:
        gathered.take(text)
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        made = pool.map(lambda shard: _shard_units(shard, before, rows), gathered.shards)
        units = [unit for units in made for unit in units]
    for images in gathered.loose:
        base = _base_name(images[0].root)
        units.extend(_loose_units(images, base, remembered(base)))
    return Inputs(
        units=_refuse_double_names(units),
        left_out=dict(gathered.left_out.most_common()),
        skipped=dict(gathered.skipped),
    )


def _shard_units(found: Found, before: Before, rows: Rows) -> list[Unit]:
    """A shard's units; those that earlier runs made of it, where they did."""
    whole = Unit(
        name=_unit_name(os.path.splitext(found.name)[0]),
        kind=found.what,
        path=found.at.path,
        shown=found.at.shown,
        fs=found.at.fs,
        source=f"{found.size}-{found.mtime_ns}",
    )
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


def _loose_units(
    images: list[Found], base: str, remembered: dict[str, tuple[str, ...]]
) -> Iterable[Unit]:
    """Units of at most FILES_PER_UNIT files: those of earlier runs as they were, then new ones."""
    there = {found.name: (found.size, found.mtime_ns) for found in images}
    taken = {name for members in remembered.values() for name in members}
    fresh = sorted(there.keys() - taken)
    runs = [tuple(fresh[i : i + FILES_PER_UNIT]) for i in range(0, len(fresh), FILES_PER_UNIT)]
    free = (n for number in count() if (n := f"{base}-{number:05d}") not in remembered)
    root = images[0].root
    for name, members in [*remembered.items(), *zip(free, runs, strict=False)]:
        stamps = tuple(there.get(member) for member in members)
        yield Unit(
            name=name,
            kind=LOOSE,
            path=root.path,
            shown=root.shown,
            fs=root.fs,
            source=source_of(members, stamps),
            members=members,
            stamps=stamps,
        )


def _base_name(root: Location) -> str:
    return _unit_name(os.path.basename(root.path)) or "root"


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
