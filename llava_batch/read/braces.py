"""Braces: `{00000..99999}.tar` in an `--input` → its paths, in a store looked up by listing their folders."""

from collections.abc import Iterator
from itertools import chain, islice

import pyarrow.fs as pafs
from braceexpand import braceexpand

from llava_batch.errors import UsageError
from llava_batch.read.patterns import is_pattern
from llava_batch.storage import Location, locate

_FEW = 16
"""So many paths are asked for one by one; for more, the folders that they lie in are listed."""


def expanded(text: str, whole: Location) -> Iterator[tuple[Location, pafs.FileInfo | None]]:
    """The places that `text` names, in order, `whole` what it names unexpanded; each with what is there,
    where a listing said it.

    Raises:
        UsageError: of a range that was looked up by listing, some are not there: says how many, and the
            first.
    """
    places = _places(text, whole)
    first = [*islice(places, _FEW + 1)]
    places = chain(first, places)
    if whole.is_local or len(first) <= _FEW or any(is_pattern(at.path) for at in first):
        yield from ((at, None) for at in places)
        return
    listed: dict[str, dict[str, pafs.FileInfo]] = {}
    found, missing = [], []
    for at in places:
        folder = at.path.rpartition("/")[0]
        if folder not in listed:
            selector = pafs.FileSelector(folder, allow_not_found=True)
            listed[folder] = {info.path: info for info in at.fs.get_file_info(selector)}
        info = listed[folder].get(at.path)
        if info is None:
            missing.append(at)
        else:
            found.append((at, info))
    if missing:
        more = f", nor are {len(missing) - 1} others of its range" if missing[1:] else ""
        raise UsageError(
            f"--input {missing[0].shown}: no such file or folder{more}; check the path"
        )
    yield from found


def _places(text: str, whole: Location) -> Iterator[Location]:
    """The places that `text` names; in a store on one filesystem, where braces are in the path alone."""
    bucket = whole.path.strip("/").partition("/")[0]
    in_path = "{" not in bucket and len([*islice(braceexpand(whole.path), 2)]) > 1
    if whole.is_local or not in_path:
        yield from map(locate, braceexpand(text))
        return
    pairs = zip(braceexpand(whole.path), braceexpand(whole.shown), strict=False)
    yield from (Location(whole.fs, path, shown) for path, shown in pairs)
