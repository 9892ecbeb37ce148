"""Patterns: `*`, `?`, `[…]` and `**` in an `--input`, matched part by part.

On a local disk what is no file is found too (a broken link), and `**` enters no folder twice, so
that a link back up ends it; elsewhere fsspec matches.
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase

from llava_batch.read.neighbours import is_hidden
from llava_batch.read.walk import lies_in
from llava_batch.storage import Location, glob

_WILD = "*?["


def is_pattern(path: str) -> bool:
    return any(mark in path for mark in _WILD)


def matches(pattern: Location) -> list[str]:
    """The paths that fit, sorted."""
    if not pattern.is_local:
        return [path.rstrip("/") for path in glob(pattern)]
    found = ["/"]
    parts = pattern.path.strip("/").split("/")
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        found = [path for folder in found for path in _step(folder, part, last)]
    return sorted(set(found))


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
