"""Walk: what lies below one input folder, each file once, folder by folder.

Skipped with all that is in them: names that begin with `_` or `.`, and the run's own output. Links
to folders are followed, on a local disk, to where the walk has not been: a link back up, or one
(`latest`) to a folder that stands here itself, gives nothing twice. Opens no file.
"""

import errno
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from llava_batch.errors import UsageError
from llava_batch.read.lake.recognise import (
    LOG_FOLDER,
    METADATA_FOLDER,
    kind_of_folder,
    tables_among,
)
from llava_batch.read.neighbours import is_hidden
from llava_batch.storage import Location

HIDDEN = "names that begin with _ or ."
OUTPUT = "the run's own output"
BROKEN_LINK = "broken links"
DEVICE = "pipes and devices"

_NO_TIME = -(2**63)


@dataclass
class Files:
    """Files of one folder, by columns: there may be millions."""

    below: str
    """The path of the folder below the one that was walked; "" is that one."""
    real: str
    """Where it is, without linked folders."""
    linked: bool = False
    """Reached through a linked folder."""
    names: list[str] = field(default_factory=list)
    """The last parts of their paths, sorted."""
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[int]" = field(default_factory=lambda: array("q"))
    odd: dict[str, str] = field(default_factory=dict)
    """By name, what is no file: `broken links`."""

    def add(self, name: str, size: int, mtime_ns: int | None) -> None:
        self.names.append(name)
        self.sizes.append(size)
        self.times.append(_NO_TIME if mtime_ns is None else mtime_ns)

    def mtime_ns(self, place: int) -> int | None:
        time = self.times[place]
        return None if time == _NO_TIME else time

    def path(self, name: str) -> str:
        """A file's path below the folder that was walked."""
        return f"{self.below}/{name}" if self.below else name

    def those(self, places: Sequence[int]) -> "Files":
        """The files in these places, which ascend."""
        if len(places) == len(self.names):
            return self
        some = Files(self.below, self.real, self.linked, odd=self.odd)
        some.names = [self.names[n] for n in places]
        some.sizes = array("q", (self.sizes[n] for n in places))
        some.times = array("q", (self.times[n] for n in places))
        return some

    def in_order(self) -> "Files":
        """The same, sorted by name."""
        if all(a <= b for a, b in zip(self.names, self.names[1:], strict=False)):
            return self
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        self.names = [self.names[n] for n in order]
        self.sizes = array("q", (self.sizes[n] for n in order))
        self.times = array("q", (self.times[n] for n in order))
        return self


@dataclass(frozen=True)
class Table:
    """One folder that is a table of the lake: what lies in it is the table's alone."""

    name: str
    real: str
    kind: str


@dataclass
class Listing:
    """What a walk saw. `skipped` has the rule by the path of what was passed over, folders whole."""

    files: list[Files] = field(default_factory=list)
    """Folder by folder, by the path of the first file in each."""
    folders: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)


def walk(folder: Location, own: Location | None) -> Listing:
    """Everything below `folder`; `own` is the run's output.

    Raises:
        UsageError: a name that is not UTF-8, which nothing here could open.
    """
    own_path = real_path(own) if own is not None and own.fs == folder.fs else None
    found = _Local(folder, own_path).walk() if folder.is_local else _listed(folder, own_path)
    found.files = [files.in_order() for files in found.files if files.names]
    found.files.sort(key=lambda files: files.path(files.names[0]))
    return found


def real_path(at: Location) -> str:
    """Where a folder is, whatever links it was named by."""
    return os.path.realpath(at.path) if at.is_local else at.path


def lies_in(path: str, folder: str) -> bool:
    """Whether a path is the folder or below it."""
    return f"{path}/".startswith(folder.rstrip("/") + "/")


def _listed(folder: Location, own: str | None) -> Listing:
    """A walk of a store that has no links: one recursive listing."""
    found = Listing()
    files: dict[str, Files] = {}
    base = folder.path.rstrip("/") + "/"
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    infos = folder.fs.get_file_info(selector)
    tables = _tables(folder, (i.path.removeprefix(base) for i in infos if i.is_file))
    found.tables += tables.values()
    for info in infos:
        name = info.path.removeprefix(base)
        parts = name.split("/")
        if tables and any("/".join(parts[:n]) in tables for n in range(len(parts) + 1)):
            continue
        first = next((n for n, part in enumerate(parts) if is_hidden(part)), None)
        if own is not None and lies_in(info.path, own):
            found.skipped[own] = OUTPUT
        elif first is not None:
            found.skipped[base + "/".join(parts[: first + 1])] = HIDDEN
        elif info.type == pafs.FileType.File:
            below, _, last = name.rpartition("/")
            if below not in files:
                files[below] = Files(below, (base + below).rstrip("/"))
            files[below].add(last, info.size, info.mtime_ns)
        elif info.type == pafs.FileType.Directory:
            found.folders.add(name)
    found.files = [*files.values()]
    found.folders |= files.keys() - {""}
    return found


def _tables(folder: Location, files: Iterator[str]) -> dict[str, Table]:
    """The tables that files lie in, by their names; the folder itself is ""."""
    own = folder.path.rpartition("/")[2]
    among = tables_among([own, *name.split("/")] for name in files)
    found = {}
    for path, kind in sorted(among.items()):
        parts = path[1:]
        first = next((part for part in parts if is_hidden(part)), None)
        if path and first is None:
            name = "/".join(parts)
            found[name] = Table(name, "/".join([folder.path, *parts]), kind)
    return found


class _Local:
    """A walk of a local disk: folders that stand here first, then those that links lead to."""

    def __init__(self, folder: Location, own: str | None) -> None:
        self._folder, self._own = folder, own
        self._root = os.path.realpath(folder.path)
        self._seen = {self._root}
        self._here: list[tuple[str, str, bool]] = [("", self._root, False)]
        self._links: list[tuple[str, str, bool]] = []
        self._found = Listing()

    def walk(self) -> Listing:
        while self._here or self._links:
            below, real, linked = self._here.pop() if self._here else self._links.pop(0)
            if linked and real in self._seen:
                continue
            self._seen.add(real)
            kind = self._table_kind(real)
            if kind is not None:
                self._found.tables.append(Table(below, real, kind))
                continue
            files = Files(below, real, linked)
            for entry in _entries(real):
                self._take(entry, files)
            self._found.files.append(files)
            self._links.sort()
        return self._found

    def _table_kind(self, real: str) -> str | None:
        """What the folder is, where it is a table of the lake."""
        marks = (LOG_FOLDER, METADATA_FOLDER)
        names = [name for name in marks if os.path.lexists(os.path.join(real, name))]
        metadata = os.path.join(real, METADATA_FOLDER)
        return kind_of_folder(real, names, lambda: (e.name for e in _entries(metadata)))

    def _take(self, entry: os.DirEntry[str], files: Files) -> None:
        real = os.path.join(files.real, entry.name)
        if is_hidden(entry.name):
            self._found.skipped[real] = HIDDEN
            return
        _require_utf8(entry.name, self._folder)
        is_link = entry.is_symlink()
        target = os.path.realpath(real) if is_link else real
        status = _status(entry)
        if self._own is not None and lies_in(target, self._own):
            self._found.skipped[real] = OUTPUT
        elif status is None and is_link:
            files.add(entry.name, 0, None)
            files.odd[entry.name] = BROKEN_LINK
        elif status is None:
            pass  # deleted while the walk went on
        elif stat.S_ISDIR(status.st_mode):
            self._take_folder(files.path(entry.name), target, files.linked, is_link)
        else:
            files.add(entry.name, status.st_size, status.st_mtime_ns)
            if not stat.S_ISREG(status.st_mode):
                files.odd[entry.name] = DEVICE

    def _take_folder(self, name: str, target: str, linked: bool, is_link: bool) -> None:
        self._found.folders.add(name)
        if not is_link:
            self._here.append((name, target, linked))
        elif not lies_in(self._root, target):  # else it leads back up
            self._links.append((name, target, True))


def _entries(real: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(real) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return  # deleted while the walk went on


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The status of what an entry is or links to; None where nothing is there."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


def _require_utf8(name: str, folder: Location) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{folder.shown}: the name {os.fsencode(name)!r} in it is not UTF-8; rename that file"
        ) from None
