"""Patterns: `*`, `?`, `[…]` and `**` in an `--input`, matched part by part.

On a local disk what is no file is found too (a broken link), and `**` enters no folder twice, so
that a link back up ends it. A store is asked for listings of folders, and for nothing else.
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pyarrow.fs as pafs

from llava_batch.read.neighbours import is_hidden
from llava_batch.read.walk import lies_in
from llava_batch.storage import Location

_WILD = "*?["


def is_pattern(path: str) -> bool:
    return any(mark in path for mark in _WILD)


def matches(pattern: Location) -> list[pafs.FileInfo]:
    """What fits, sorted by path."""
    if not pattern.is_local:
        return sorted(_in_store(pattern), key=lambda info: info.path)
    found = ["/"]
    parts = pattern.path.strip("/").split("/")
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        found = [path for folder in found for path in _step(folder, part, last)]
    infos: list[pafs.FileInfo] = pattern.fs.get_file_info(sorted(set(found)))
    return infos


def _in_store(pattern: Location) -> Iterator[pafs.FileInfo]:
    """What fits in a store: its folders are listed from the first wildcard on, all below it at once
    where there is a `**`."""
    first = _first_wild(pattern.path)
    parts = pattern.path.split("/")
    base, rest = "/".join(parts[:first]), parts[first:]
    if "**" in rest:
        everything = _listing(pattern.fs, base, recursive=True)
        if _fits([], rest):
            everything.append(pattern.fs.get_file_info(base))
        yield from (i for i in everything if _fits(_below(i.path, base), rest))
        return
    folders = [base]
    for number, part in enumerate(rest[:-1], first):
        below = (info for folder in folders for info in _listing(pattern.fs, folder))
        folders = [i.path for i in below if not i.is_file and fnmatchcase(_part(i, number), part)]
    for folder in folders:
        at = len(folder.split("/")) if folder else 0
        yield from (i for i in _listing(pattern.fs, folder) if fnmatchcase(_part(i, at), rest[-1]))


def _listing(fs: pafs.FileSystem, folder: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(folder, recursive=recursive, allow_not_found=True)
    found: list[pafs.FileInfo] = fs.get_file_info(selector)
    return found


def _part(info: pafs.FileInfo, number: int) -> str:
    parts: list[str] = info.path.split("/")
    return parts[number]


def _below(path: str, folder: str) -> list[str]:
    below = path[len(folder) :].strip("/")
    return below.split("/") if below else []


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path fits, part by part; `**` stands for any number of parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def prefixes(path: str, pattern: str) -> list[str]:
    """The paths on the way to a match, itself among them, from the first wildcard's on."""
    parts = path.split("/")
    return ["/".join(parts[: end + 1]) for end in range(_first_wild(pattern), len(parts))]


def means_hidden(pattern: str) -> bool:
    """Whether a pattern asks for names that begin with `_` or `.`, as `*` does not."""
    return any(map(is_hidden, pattern.split("/")[_first_wild(pattern) :]))


def _first_wild(pattern: str) -> int:
    return next(n for n, part in enumerate(pattern.split("/")) if is_pattern(part))


def _step(folder: str, part: str, last: bool) -> Iterator[str]:
    """The paths that one more part of a pattern leads to."""
    if part == "**":
        yield from _all_below(folder, with_files=last)
    elif is_pattern(part):
        yield from (os.path.join(folder, n) for n in _names(folder) if fnmatchcase(n, part))
    elif os.path.lexists(path := os.path.join(folder, part)):
        yield path


def _all_below(folder: str, *, with_files: bool) -> Iterator[str]:
    """A folder and those below it, linked ones too, each once."""
    seen: set[str] = set()
    pending = [folder]
    while pending:
        path = pending.pop()
        if os.path.isdir(path):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                yield path
                pending += [os.path.join(path, name) for name in _names(path)]
        elif with_files:
            yield path


def _names(folder: str) -> list[str]:
    """What stands in a folder, but links that lead back up."""
    if not os.path.isdir(folder):
        return []
    real = os.path.realpath(folder)
    return [e.name for e in os.scandir(folder) if not (e.is_symlink() and _leads_up(e.path, real))]


def _leads_up(link: str, folder: str) -> bool:
    return lies_in(folder, os.path.realpath(link))
