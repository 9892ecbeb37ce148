"""Inputs → work units: what `--input` names, found, sorted into kinds, named and fingerprinted.

A unit is read, answered and committed as a whole: one tar, one Parquet file (a large one: a run of
row groups), one run of loose image files. Its name comes from its own path and from nothing else.
Runs in the driver, before any actor starts; opens no image.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow.fs as pafs
from braceexpand import braceexpand

from llava_batch.errors import UsageError
from llava_batch.read.kinds import KINDS, LOOSE, kind_of
from llava_batch.storage import Location, glob, list_files, locate
from llava_batch.unit import Unit

FILES_PER_UNIT = 1000
"""Loose image files in one unit; the most that a kill costs is the open units' answers."""

_HIDING = {"_": "%5F", ".": "%2E"}
_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


@dataclass(frozen=True)
class _Found:
    """One input file: where it is, and the name that it gives to its unit (without extension)."""

    at: Location
    info: pafs.FileInfo
    name: str


Members = Callable[[str], dict[str, tuple[str, ...]]]
"""Given a folder's unit base (`photos`), the memberships that earlier runs fixed, by unit name."""


def find_units(inputs: Iterable[str], remembered: Members = lambda base: {}) -> list[Unit]:
    """All units that `inputs` name, in the order given and by path within each.

    Raises:
        UsageError: an input that matches nothing, a file of no known kind, two units of one name.
    """
    units: list[Unit] = []
    loose: dict[tuple[str, str], list[_Found]] = defaultdict(list)
    places: dict[tuple[str, str], Location] = {}
    for text in inputs:
        matched = False
        for location in _expand(text):
            shards, images, root = _sort_out(location)
            matched = matched or bool(shards or images)
            for found in shards:
                units.extend(_shard_units(found))
            if images:
                place = (root.path, _base_name(root))
                places[place] = root
                loose[place].extend(images)
        if not matched:
            raise UsageError(
                f"--input {locate(text).shown}: no image, tar or Parquet file there; check the path"
            )
    for place, images in loose.items():
        units.extend(_loose_units(places[place], place[1], images, remembered(place[1])))
    return _refuse_double_names(units)


def _expand(text: str) -> Iterable[Location]:
    """The locations that one `--input` names, its braces and wildcards expanded."""
    whole = locate(text)
    if whole.info().type != pafs.FileType.NotFound:
        yield whole
        return
    for part in braceexpand(text):
        location = locate(part)
        if any(mark in location.path for mark in "*?["):
            for path in glob(location):
                yield Location(location.fs, path, path)
        elif location.info().type == pafs.FileType.NotFound:
            raise UsageError(f"--input {location.shown}: no such file or folder; check the path")
        else:
            yield location


def _sort_out(location: Location) -> tuple[list[_Found], list[_Found], Location]:
    """Shards, loose images and the folder they lie in, for one file or folder."""
    info = location.info()
    if info.type == pafs.FileType.Directory:
        below = [_found_below(location, i) for i in list_files(location)]
        _refuse_compressed(below)
        shards = [f for f in below if kind_of(f.at.path) not in (None, LOOSE)]
        images = [f for f in below if kind_of(f.at.path) == LOOSE]
        return _drop_side_files(shards, below), images, location
    kind = kind_of(location.path)
    folder, _, name = location.path.rpartition("/")
    found = _Found(location, info, os.path.splitext(name)[0])
    if kind == LOOSE:
        root = Location(location.fs, folder, folder)
        return [], [_Found(location, info, name)], root
    if kind is None:
        _refuse_compressed([found])
        raise UsageError(
            f"--input {location.shown}: not a kind of file that is read; "
            "give a .tar, a .parquet, an image, or a folder of them"
        )
    return [found], [], location


def _refuse_compressed(files: Iterable[_Found]) -> None:
    """Refuse what holds images and cannot be read, rather than leave it out."""
    for file in files:
        if file.at.path.lower().endswith(_COMPRESSED):
            raise UsageError(
                f"--input {file.at.shown}: compressed tars are not read; decompress it "
                "(the images in it are compressed already)"
            )


def _found_below(folder: Location, info: pafs.FileInfo) -> _Found:
    relative = info.path[len(folder.path) + 1 :]
    return _Found(folder.child(relative), info, os.path.splitext(relative)[0])


def _drop_side_files(shards: list[_Found], below: list[_Found]) -> list[_Found]:
    """Leave out the Parquet file that img2dataset writes beside a tar, or a folder, of that name."""
    tars = {f.name for f in shards if f.at.path.endswith(".tar")}
    folders = {f.name.rpartition("/")[0] for f in below}
    return [
        f for f in shards
        if not (f.at.path.endswith(".parquet") and (f.name in tars or f.name in folders))
    ]  # fmt: skip


def _shard_units(found: _Found) -> Iterable[Unit]:
    kind, size = kind_of(found.at.path), found.info.size or 0
    assert kind is not None
    whole = Unit(
        name=_unit_name(found.name),
        kind=kind,
        path=found.at.path,
        shown=found.at.shown,
        fs=found.at.fs,
        source=f"{size}-{found.info.mtime_ns}",
    )
    return KINDS[kind].units(whole, size)


def _unit_name(name: str) -> str:
    """`name` with no part that begins as what readers of tables skip does."""
    parts = name.split("/")
    return "/".join(_HIDING.get(part[:1], part[:1]) + part[1:] for part in parts)


def _loose_units(
    root: Location, base: str, images: list[_Found], remembered: dict[str, tuple[str, ...]]
) -> Iterable[Unit]:
    """Units of at most FILES_PER_UNIT files: those of earlier runs as they were, then new ones."""
    relative = {f.at.path[len(root.path) + 1 :]: f.info for f in images}
    if remembered and not relative.keys() & remembered[min(remembered)]:
        raise UsageError(
            f"--input {root.shown}: none of the files that the output's unit {min(remembered)} was "
            "made of is there; give another --output for another folder of that name"
        )
    taken = {name for members in remembered.values() for name in members}
    fresh = sorted(set(relative) - taken)
    groups = dict(remembered)
    for start in range(0, len(fresh), FILES_PER_UNIT):
        groups[f"{base}-{len(groups):05d}"] = tuple(fresh[start : start + FILES_PER_UNIT])
    for name, members in groups.items():
        facts = [
            (m, relative[m].size, relative[m].mtime_ns) if m in relative else (m,) for m in members
        ]
        yield Unit(
            name=name,
            kind=LOOSE,
            path=root.path,
            shown=root.shown,
            fs=root.fs,
            source=hashlib.sha256(repr(facts).encode()).hexdigest()[:16],
            members=members,
        )


def _base_name(root: Location) -> str:
    return _unit_name(os.path.basename(root.path)) or "root"


def _refuse_double_names(units: list[Unit]) -> list[Unit]:
    seen: dict[str, Unit] = {}
    for unit in units:
        other = seen.setdefault(unit.name, unit)
        if other is unit:
            continue
        if (other.kind, other.path) == (unit.kind, unit.path):
            raise UsageError(f"--input {unit.shown}: given twice; name it once")
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
