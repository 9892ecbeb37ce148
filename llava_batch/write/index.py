"""The index: what many single files under `_manifest/` said, in one, so that a start reads few.

    OUT/_manifest/_index/<number>-<token>.index

The first line says the format and whether the file is `whole`: then it speaks of all units there are, and files
of lower numbers say nothing any more. Each other line is `{"unit": …, "record": …, "members": …}`, as the unit's
single files have them; a key that is missing says nothing, null says that there is none. A file of a higher
number has the last word over a lower, a single file over all. It is gzip (`zcat < FILE` shows it), which tells where it was cut.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

INDEX = "_index/"
"""Where it lies, below `_manifest/`."""
SUFFIX = ".index"
"""Not .gz, by which pyarrow would unpack and pack it unasked."""

_FORMAT = 1
_LEVEL = 1
"""Of compression: the hashes in it do not shrink at any."""


@dataclass(frozen=True)
class IndexFile:
    """What one file of the index says."""

    is_whole: bool
    lines: list[dict[str, Any]]


def is_index(name: str) -> bool:
    """Whether a name below `_manifest/` is of the index."""
    return name.startswith(INDEX) and name.endswith(SUFFIX)


def number_of(name: str) -> int:
    """The number in an index file's name; 0 where it is none of ours."""
    number = name.removeprefix(INDEX).partition("-")[0]
    return int(number) if number.isdecimal() else 0


def packed(lines: Iterable[dict[str, Any]], *, is_whole: bool) -> bytes:
    """An index file's bytes."""
    said: list[dict[str, Any]] = [{"index": _FORMAT, "whole": is_whole}]
    text = "\n".join(json.dumps(line) for line in (*said, *lines))
    return gzip.compress(text.encode() + b"\n", _LEVEL)


def unpacked(data: bytes) -> IndexFile:
    """What an index file says.

    Raises:
        ValueError: it was cut, is none of ours, or is of a version that this one does not know.
    """
    try:
        first, *rest = gzip.decompress(data).splitlines()
        said = json.loads(first)
        known = isinstance(said, dict) and said.get("index") == _FORMAT
        lines = [*_lines(rest)] if known else []
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    if not known:
        raise ValueError("another version wrote it")
    return IndexFile(is_whole=bool(said["whole"]), lines=lines)


def _lines(texts: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for text in texts:
        line = json.loads(text)
        if not isinstance(line, dict) or not isinstance(line.get("unit"), str):
            raise ValueError("a line without its unit")
        yield line
