"""Sample: counts and rows of units without reading them whole; what an estimate is made of.

`look_at` counts: every unit where that is cheap, of the others a seeded few. `draw` takes small runs of
rows (`Run`) at random places of what was counted, none twice, so that each image is as likely to be in
the sample as any other. `sample_source` reads them.
"""

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate

from llava_batch.read.kinds import KINDS
from llava_batch.read.reading import Look, Reading
from llava_batch.unit import Unit

MOST_LOOKED_INTO = 64
"""Local shards of one kind that are looked into, where that takes more than a footer; and
MOST_REMOTE in an object store."""
MOST_REMOTE = 16
MOST_FOOTERS = 1000
RETRIED = "answered again"
RUN_ROWS = 8
"""Rows of one run."""

_AT_ONCE = 16
"""Units looked at while others wait for their storage."""


def look_at(units: Sequence[Unit], reading: Reading, chance: random.Random) -> dict[str, Look]:
    """What units hold, by name: all of a kind, or a seeded few of them.

    Raises:
        OSError: the storage failed.
    """
    chosen = [u for several in by_kind(units).values() for u in _few(several, chance)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        looks = pool.map(lambda unit: _look(unit, reading), chosen)
        return {unit.name: look for unit, look in zip(chosen, looks, strict=True)}


def by_kind(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """The units of each kind; those of which only some rows are answered again are a kind of their own, and
    so are the largest files of a kind of which a few are looked into: one of them may hold most of all."""
    kinds: dict[str, list[Unit]] = {}
    for unit in units:
        kinds.setdefault(RETRIED if unit.retry is not None else unit.kind, []).append(unit)
    for kind, several in [*kinds.items()]:
        most = _most(several)
        if len(several) > most and several[0].fs.type_name == "local":
            by_size = sorted(several, key=lambda unit: -(unit.num_bytes or 0))
            kinds[f"{kind}, the largest"] = by_size[: most // 4]
            kinds[kind] = by_size[most // 4 :]
    return kinds


def _most(units: list[Unit]) -> int:
    """How many of the units of one kind are looked into."""
    if all(unit.num_rows is not None for unit in units):
        return len(units)
    if units[0].kind == "parquet":
        return MOST_FOOTERS
    return MOST_LOOKED_INTO if units[0].fs.type_name == "local" else MOST_REMOTE


def _few(units: list[Unit], chance: random.Random) -> list[Unit]:
    """Those of the units of one kind that are looked into."""
    most = _most(units)
    return units if len(units) <= most else chance.sample(units, most)


def _look(unit: Unit, reading: Reading) -> Look:
    known = unit.num_rows
    return KINDS[unit.kind].look(unit, reading) if known is None else Look(images=known)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Rows of a unit that stand together: `count` after the first `skip` of it."""

    unit: Unit
    skip: int
    count: int


def draw(
    units: Sequence[Unit],
    looks: Mapping[str, Look],
    images: Mapping[str, float],
    most: int,
    chance: random.Random,
) -> list[Run]:
    """Runs of up to RUN_ROWS rows, about `most` rows in all, in random order; all that there are where
    these are fewer. Each kind has its share of them, by the `images` that it is thought to have."""
    num_runs = -(-most // RUN_ROWS)
    placed = []
    for kind, several in by_kind(units).items():
        drawn = _places([u for u in several if u.name in looks], looks, num_runs, chance)
        step = 1 / max(images[kind], 1)
        start = chance.random()
        placed += [((start + i) * step, *place) for i, place in enumerate(drawn)]
    placed.sort(key=lambda p: p[0])
    return [_run(unit, looks[unit.name], first) for _, unit, first in placed[:num_runs]]


def _places(
    units: Sequence[Unit], looks: Mapping[str, Look], most: int, chance: random.Random
) -> list[tuple[Unit, int]]:
    """Where runs begin, in random order, none twice: the unit, and the number of its row."""
    ends = [*accumulate(-(-looks[unit.name].images // RUN_ROWS) for unit in units)]
    there = ends[-1] if ends else 0
    places = []
    for number in chance.sample(range(there), min(there, most)):
        place = bisect_right(ends, number)
        before = ends[place - 1] if place else 0
        places.append((units[place], (number - before) * RUN_ROWS))
    return places


def _run(unit: Unit, look: Look, first: int) -> Run:
    count = min(RUN_ROWS, look.images - first)
    if unit.retry is not None:
        few = frozenset(sorted(unit.retry)[first : first + count])
        return Run(unit=replace(unit, retry=few), skip=0, count=count)
    part, skip = KINDS[unit.kind].part(unit, look, first, count)
    return Run(unit=part, skip=skip, count=count)
