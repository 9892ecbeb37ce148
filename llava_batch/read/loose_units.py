"""Units of loose image files: those of earlier runs as they were, then new ones of at most FILES_PER_UNIT.

Files in a Hive partition make units of their own, named by it; the others by the folder that they were found
in. Earlier versions named all by the folder that was given, whatever partition it was: such units go on.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from llava_batch.read.gather import Found
from llava_batch.read.kinds import LOOSE
from llava_batch.read.partitions import innermost, partition_of
from llava_batch.read.walk import lies_in
from llava_batch.storage import Location
from llava_batch.unit import Stamp, Unit, source_of

FILES_PER_UNIT = 1000
"""Loose image files in one unit; the most that a kill costs is the open units' answers."""

Members = Callable[[str], dict[str, tuple[str, ...]]]
"""Given a folder's unit base (`photos`), the memberships that earlier runs fixed, by unit name."""

Answered = Callable[[str], Iterable[str]]
"""Given where an input lies (`Unit.input`), the units that were answered from it."""


def loose_units(
    images: list[Found],
    remembered: Members,
    answered: Answered,
    unit_name: Callable[[str], str],
) -> Iterable[Unit]:
    """The units of the images whose names are counted from one folder; `unit_name` makes a path one."""
    there = {found.at.path: (found.size, found.mtime_ns) for found in images}
    groups: dict[str, list[str]] = {}
    for path, found in zip(there, images, strict=True):
        groups.setdefault(innermost(os.path.dirname(path)) or found.table, []).append(path)
    places = [_Place(_at(f, images[0]), unit_name(_base(f, images[0].table))) for f in groups]
    taken: set[str] = set()
    for place in places:
        for name, members in remembered(place.base).items():
            taken.update(map(place.path, members))
            yield place.unit(name, members, there)
    for place in _older(images, unit_name, places):
        for name in answered(place.input):
            members = remembered(place.base).get(name, ())
            if not taken.isdisjoint(map(place.path, members)) or not members:
                continue
            unit = place.unit(name, members, there)
            if any(unit.stamps):
                taken.update(map(place.path, members))
                yield unit
    for place, paths in zip(places, groups.values(), strict=True):
        fresh = sorted(place.name(path) for path in paths if path not in taken)
        held = remembered(place.base)
        free = (n for number in count() if (n := f"{place.base}-{number:05d}") not in held)
        for start in range(0, len(fresh), FILES_PER_UNIT):
            yield place.unit(next(free), tuple(fresh[start : start + FILES_PER_UNIT]), there)


def with_metadata(unit: Unit, metadata: Sequence[Location]) -> Unit:
    """The unit, with the files of metadata beside or above one of its images."""
    if not metadata:
        return unit
    folders = {os.path.dirname(f"{unit.path.rstrip('/')}/{member}") for member in unit.members}
    there = (m.path for m in metadata if m.fs == unit.fs)
    above = (p for p in there if any(lies_in(f, os.path.dirname(p)) for f in folders))
    return replace(unit, metadata=tuple(sorted(above)))


@dataclass(frozen=True)
class _Place:
    """A folder, and what names of units of its files begin with."""

    at: Location
    base: str

    @property
    def input(self) -> str:
        return f"{self.at.fs.type_name}:{self.at.path}"

    def path(self, member: str) -> str:
        return f"{self.at.path.rstrip('/')}/{member}"

    def name(self, path: str) -> str:
        return path[len(self.at.path) :].lstrip("/")

    def unit(self, name: str, members: tuple[str, ...], there: dict[str, Stamp]) -> Unit:
        stamps = tuple(there.get(self.path(member)) for member in members)
        return Unit(
            name=name,
            kind=LOOSE,
            path=self.at.path,
            shown=self.at.shown,
            fs=self.at.fs,
            source=source_of(members, stamps),
            partition=partition_of(self.at.path),
            members=members,
            stamps=stamps,
        )


def _older(
    images: list[Found], unit_name: Callable[[str], str], places: list[_Place]
) -> list[_Place]:
    """The folders by which earlier versions may have named units of these files."""
    if not any(found.partition for found in images):
        return []
    folders = dict.fromkeys([images[0].table, *(found.root.path for found in images)])
    named = [_Place(_at(f, images[0]), unit_name(_base(f, f))) for f in folders]
    return [place for place in named if place not in places]


def _base(folder: str, table: str) -> str:
    """What names of units of files in `folder` begin with."""
    below = folder[len(table) :].strip("/")
    return below or os.path.basename(folder) or "root"


def _at(folder: str, image: Found) -> Location:
    """A folder below or above the one that was given, as a person may see it."""
    root = image.root
    if folder == root.path:
        return root
    if folder.startswith(above := root.path.rstrip("/") + "/"):
        return root.child(folder[len(above) :])
    is_above = root.path.startswith(folder.rstrip("/") + "/")
    shown = root.shown.removesuffix(root.path[len(folder) :]) if is_above else folder
    return Location(root.fs, folder, shown)
