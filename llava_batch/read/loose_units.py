"""Units of loose image files: those of earlier runs as they were, then new ones of at most FILES_PER_UNIT.

Files in a Hive partition make units of their own, named by it; the others by the folder that they were found
in. Earlier versions named all by the folder that was given, whatever partition it was: such units go on.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import count, islice

from llava_batch.read.found import Bunch
from llava_batch.read.kinds import LOOSE
from llava_batch.read.partitions import innermost, partition_of
from llava_batch.read.walk import lies_in
from llava_batch.storage import Location
from llava_batch.unit import Names, Stamp, Stamps, Unit, source_of

FILES_PER_UNIT = 1000
"""Loose image files in one unit; the most that a kill costs is the open units' answers."""

Members = Callable[[str], Mapping[str, Sequence[str]]]
"""Given a folder's unit base (`photos`), the memberships that earlier runs fixed, by unit name."""

Answered = Callable[[str], Iterable[str]]
"""Given where an input lies (`Unit.input`), the units that were answered from it."""


def loose_units(
    images: list[Bunch],
    remembered: Members,
    answered: Answered,
    unit_name: Callable[[str], str],
) -> Iterable[Unit]:
    """The units of the images whose names are counted from one folder; `unit_name` makes a path one."""
    there = _There(images)
    groups: dict[str, list[Bunch]] = {}
    for bunch in images:
        groups.setdefault(innermost(bunch.at.path) or bunch.way.table, []).append(bunch)
    table = images[0].way.table
    places = [_Place(_at(f, images[0]), unit_name(_base(f, table))) for f in groups]
    for place in places:
        for name, members in remembered(place.base).items():
            there.take(map(place.path, members))
            yield place.unit(name, ((m, there.stamp(place.path(m))) for m in members))
    for place in _older(images, unit_name, places):
        for name in answered(place.input):
            members = remembered(place.base).get(name, ())
            if not members or there.is_any_taken(map(place.path, members)):
                continue
            unit = place.unit(name, ((m, there.stamp(place.path(m))) for m in members))
            if any(unit.stamps):
                there.take(map(place.path, members))
                yield unit
    for place, bunches in zip(places, groups.values(), strict=True):
        fresh = merge(*(there.free(bunch, place.name(bunch.at.path)) for bunch in bunches))
        held = remembered(place.base)
        free = (n for number in count() if (n := f"{place.base}-{number:05d}") not in held)
        while files := [*islice(fresh, FILES_PER_UNIT)]:
            yield place.unit(next(free), files)


class _There:
    """Which files there are, and which of them are in a unit already."""

    def __init__(self, bunches: Iterable[Bunch]) -> None:
        self._by_folder: dict[str, list[Bunch]] = {}
        for bunch in bunches:
            self._by_folder.setdefault(bunch.at.path.rstrip("/"), []).append(bunch)
        self._taken: dict[int, bytearray] = {}
        self._gone: set[str] = set()
        """Files of units that are not there any more."""

    def stamp(self, path: str) -> Stamp | None:
        found = self._find(path)
        return found and found[0].stamp(found[1])

    def take(self, paths: Iterable[str]) -> None:
        for path in paths:
            if found := self._find(path):
                self._marks(found[0])[found[1]] = True
            else:
                self._gone.add(path)

    def is_any_taken(self, paths: Iterable[str]) -> bool:
        for path in paths:
            found = self._find(path)
            if self._marks(found[0])[found[1]] if found else path in self._gone:
                return True
        return False

    def free(self, bunch: Bunch, below: str) -> Iterator[tuple[str, Stamp]]:
        """The files of `bunch` in order that no unit has, as paths whose folder is `below`, and their
        stamps."""
        taken = self._taken.get(id(bunch))
        for place, name in enumerate(bunch.names):
            if taken is None or not taken[place]:
                yield f"{below}/{name}" if below else name, bunch.stamp(place)

    def _marks(self, bunch: Bunch) -> bytearray:
        if id(bunch) not in self._taken:
            self._taken[id(bunch)] = bytearray(len(bunch.names))
        return self._taken[id(bunch)]

    def _find(self, path: str) -> tuple[Bunch, int] | None:
        folder, _, name = path.rpartition("/")
        for bunch in self._by_folder.get(folder, ()):
            if (place := bunch.place(name)) is not None:
                return bunch, place
        return None


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

    def unit(self, name: str, files: Iterable[tuple[str, Stamp | None]]) -> Unit:
        """The unit of these members and their stamps."""
        held = [*files]
        members, stamps = Names(m for m, _ in held), Stamps(stamp for _, stamp in held)
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
    images: list[Bunch], unit_name: Callable[[str], str], places: list[_Place]
) -> list[_Place]:
    """The folders by which earlier versions may have named units of these files."""
    if not any(bunch.partition for bunch in images):
        return []
    folders = dict.fromkeys([images[0].way.table, *(bunch.way.root.path for bunch in images)])
    named = [_Place(_at(f, images[0]), unit_name(_base(f, f))) for f in folders]
    return [place for place in named if place not in places]


def _base(folder: str, table: str) -> str:
    """What names of units of files in `folder` begin with."""
    below = folder[len(table) :].strip("/")
    return below or os.path.basename(folder) or "root"


def _at(folder: str, image: Bunch) -> Location:
    """A folder below or above the one that was given, as a person may see it."""
    root = image.way.root
    if folder == root.path:
        return root
    if folder.startswith(above := root.path.rstrip("/") + "/"):
        return root.child(folder[len(above) :])
    is_above = root.path.startswith(folder.rstrip("/") + "/")
    shown = root.shown.removesuffix(root.path[len(folder) :]) if is_above else folder
    return Location(root.fs, folder, shown)
