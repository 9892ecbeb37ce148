"""Walk: what lies below one input folder, each file once.

Skipped with all that is in them: names that begin with `_` or `.`, and the run's own output. Links
to folders are followed, on a local disk, to where the walk has not been: a link back up, or one
(`latest`) to a folder that stands here itself, gives nothing twice. Opens no file.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from llava_batch.errors import UsageError
from llava_batch.read.lake.recognise import kind_of_folder, tables_among
from llava_batch.read.neighbours import is_hidden
from llava_batch.storage import Location

HIDDEN = "names that begin with _ or ."
OUTPUT = "the run's own output"
BROKEN_LINK = "broken links"
DEVICE = "pipes and devices"


@dataclass(frozen=True)
class File:
    """One file below a folder: `name` is its path there, `real` the path without linked folders."""

    name: str
    real: str
    size: int
    mtime_ns: int | None
    linked: bool = False
    """Reached through a linked folder."""
    odd: str = ""
    """What it is where it is no file: `broken links`."""


@dataclass(frozen=True)
class Table:
    """One folder that is a table of the lake: what lies in it is the table's alone."""

    name: str
    real: str
    kind: str


@dataclass
class Listing:
    """What a walk saw. `skipped` has the rule by the path of what was passed over, folders whole."""

    files: list[File] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)


def walk(folder: Location, own: Location | None) -> Listing:
    """Everything below `folder`, files sorted by path; `own` is the run's output.

    Raises:
        UsageError: a name that is not UTF-8, which nothing here could open.
    """
    own_path = real_path(own) if own is not None and own.fs == folder.fs else None
    found = _Local(folder, own_path).walk() if folder.is_local else _listed(folder, own_path)
    found.files.sort(key=lambda file: file.name)
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
    base = folder.path.rstrip("/") + "/"
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    infos = folder.fs.get_file_info(selector)
    tables = _tables(folder, [i.path.removeprefix(base) for i in infos if i.is_file])
    found.tables += tables.values()
    for info in infos:
        name = info.path.removeprefix(base)
        parts = name.split("/")
        if any("/".join(parts[:n]) in tables for n in range(len(parts) + 1)):
            continue
        first = next((n for n, part in enumerate(parts) if is_hidden(part)), None)
        if own is not None and lies_in(info.path, own):
            found.skipped[own] = OUTPUT
        elif first is not None:
            found.skipped[base + "/".join(parts[: first + 1])] = HIDDEN
        elif info.type == pafs.FileType.File:
            found.files.append(File(name, info.path, info.size, info.mtime_ns))
        elif info.type == pafs.FileType.Directory:
            found.folders.add(name)
    found.folders |= {file.name.rpartition("/")[0] for file in found.files} - {""}
    return found


def _tables(folder: Location, files: list[str]) -> dict[str, Table]:
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
            entries = list(self._entries(real))
            kind = self._table_kind(real, entries)
            if kind is not None:
                self._found.tables.append(Table(below.rstrip("/"), real, kind))
                continue
            for entry in entries:
                self._take(entry, f"{below}{entry.name}", os.path.join(real, entry.name), linked)
            self._links.sort()
        return self._found

    def _table_kind(self, real: str, entries: list[os.DirEntry[str]]) -> str | None:
        """What the folder is, where it is a table of the lake."""
        names = [entry.name for entry in entries]
        metadata = os.path.join(real, "metadata")
        return kind_of_folder(real, names, lambda: (e.name for e in self._entries(metadata)))

    def _entries(self, real: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(real) as entries:
                yield from entries
        except (FileNotFoundError, NotADirectoryError):
            return  # deleted while the walk went on

    def _take(self, entry: os.DirEntry[str], name: str, real: str, linked: bool) -> None:
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
            self._found.files.append(File(name, real, 0, None, linked, odd=BROKEN_LINK))
        elif status is None:
            pass  # deleted while the walk went on
        elif stat.S_ISDIR(status.st_mode):
            self._take_folder(name, target, linked, is_link)
        else:
            odd = "" if stat.S_ISREG(status.st_mode) else DEVICE
            size, mtime_ns = status.st_size, status.st_mtime_ns
            self._found.files.append(File(name, real, size, mtime_ns, linked, odd))

    def _take_folder(self, name: str, target: str, linked: bool, is_link: bool) -> None:
        self._found.folders.add(name)
        if not is_link:
            self._here.append((f"{name}/", target, linked))
        elif not lies_in(self._root, target):  # else it leads back up
            self._links.append((f"{name}/", target, True))


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
