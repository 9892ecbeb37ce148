"""The index: what many single files under `_manifest/` said, in one, so that a start reads few.

    OUT/_manifest/_index/<number>-<token>.index

The first line says the format and whether the file is `whole`: then it speaks of all units there are, and files
of lower numbers say nothing any more. Each other line is `{"unit": …, "record": …, "members": …}`, as the unit's
single files have them; a key that is missing says nothing, null says that there is none. A file of a higher
number has the last word over a lower, a single file over all. It is gzip (`zcat < FILE` shows it), which tells where it was cut.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

INDEX = "_index/"
"""Where it lies, below `_manifest/`."""
SUFFIX = ".index"
"""Not .gz, by which pyarrow would unpack and pack it unasked."""

_FORMAT = 1
_LEVEL = 1
"""Of compression: the hashes in it do not shrink at any."""


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


def unpacked(data: bytes) -> tuple[bool, Iterator[dict[str, Any]]]:
    """Whether an index file is whole, and its lines, each parsed when it is asked for: all at once a hundred thousand
    take 300 MiB.

    Raises:
        ValueError: at any line: it was cut, is none of ours, or is of a version that this one does not know.
    """
    lines = _lines(data)
    said = next(lines, None)
    if not isinstance(said, dict) or said.get("index") != _FORMAT:
        raise ValueError("another version wrote it")
    return bool(said["whole"]), map(_with_unit, lines)


def _lines(data: bytes) -> Iterator[Any]:
    try:
        with gzip.open(io.BytesIO(data)) as file:
            for text in file:
                yield json.loads(text)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _with_unit(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict) or not isinstance(line.get("unit"), str):
        raise ValueError("a line without its unit")
    return line
