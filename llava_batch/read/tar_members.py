"""The members of a tar, read forward once, with what is damaged said and passed over.

Python's tarfile stops at the first damage (or, with `ignore_zeros`, hides it), so the walk from
header to header is done here; a header itself is parsed by `tarfile.TarInfo.frombuf`. After damage
the next header is looked for at any byte (POSIX magic and checksum), so a tar whose middle is
missing gives everything before and after. Formats: ustar, GNU long names, pax `path` and `size`.
Knows nothing of samples or images.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO

_BLOCK = 512
_CHUNK = 2**20
_MAGIC = b"ustar"
_MAGIC_AT = 257
_HEADER_BYTES = 2**20
"""A pax or long-name header over this size is damage, not a name."""
_WITH_DATA = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
_NO_END = "the tar has no end mark: it was cut off, and what came after is not here"


@dataclass(frozen=True)
class Member:
    """One regular file; `data` is None where it was too large to read, `size` says how large.

    Or a link, which has no data of its own: `link` is the name it points to.
    """

    name: str
    size: int
    data: bytes | None
    cut_short: bool = False
    link: str = ""
    start: int = 0
    """Where its first header begins, in bytes from where the stream was taken up."""


@dataclass(frozen=True)
class Damage:
    """A stretch of the tar that is no member; `what` is a sentence."""

    what: str


def members(stream: IO[bytes], max_bytes: Callable[[str], int]) -> Iterator[Member | Damage]:
    """Regular files in order; `max_bytes(name)` is the most that is read of one.

    Never raises for what the stream holds; an `OSError` of the stream itself is the caller's: the
    storage failed, not the tar.
    """
    source = _Source(stream)
    extra: dict[str, str] = {}
    begun: int | None = None  # where a long name or a pax header began that is the next member's
    may_end = False  # whether a tar that ends here was told to be damaged, or has its end mark
    while True:
        start = source.position
        block = source.read(_BLOCK)
        if not block.strip(b"\0"):
            if len(block) == _BLOCK:
                may_end = True  # the end mark, or the seam of concatenated tars
                continue
            if not may_end:
                yield Damage(_NO_END if start else "the file is empty")
            return
        header = _parse(block)
        if header is None:
            skipped = source.seek_header(block)
            yield Damage(f"{skipped} bytes from byte {start} are no tar member")
            extra, may_end, begun = {}, True, None
            continue
        may_end = False
        if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            extra |= _extra_header(source, header)
            begun = start if begun is None else begun
            continue
        name = extra.get("path", header.name)
        size = int(extra["size"]) if _is_number(extra.get("size", "")) else header.size
        first, extra, begun = start if begun is None else begun, {}, None
        if header.isreg():
            member = replace(_member(source, name, size, max_bytes(name)), start=first)
            may_end = member.cut_short
            yield member
        elif header.islnk() or header.issym():
            yield Member(name, 0, None, link=header.linkname, start=first)
        elif header.type in _WITH_DATA or header.type not in tarfile.SUPPORTED_TYPES:
            source.skip(_padded(header.size))


def _member(source: "_Source", name: str, size: int, limit: int) -> Member:
    if size > limit:
        skipped = source.skip(_padded(size))
        return Member(name, size, None, cut_short=skipped < size)
    data = source.read(size)
    source.skip(_padded(size) - size)
    return Member(name, size, data, cut_short=len(data) < size)


def _extra_header(source: "_Source", header: tarfile.TarInfo) -> dict[str, str]:
    """The name (and size) that a pax or GNU header gives to the member after it."""
    if header.size > _HEADER_BYTES:
        source.skip(_padded(header.size))
        return {}
    data = source.read(_padded(header.size))[: header.size]
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    return _pax_records(data)


def _pax_records(data: bytes) -> dict[str, str]:
    """`<length> <key>=<value>\\n` records; reading stops at the first that is malformed."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not _is_number(length) or not 0 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return records


def _parse(block: bytes) -> tarfile.TarInfo | None:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _is_number(text: str | bytes) -> bool:
    """Whether `text` is a size: digits, and few enough that `int` takes them."""
    return text.isdigit() and text.isascii() and len(text) < 20


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


class _Source:
    """Bytes of a stream, read forward, with a position and a buffer to look ahead in."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._end = _end_of(stream)
        self._buffer = b""
        self.position = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        parts = [self._buffer[:size]]
        self._buffer = self._buffer[size:]
        have = len(parts[0])
        while have < size and (part := self._stream.read(min(size - have, _CHUNK))):
            parts.append(part)
            have += len(part)
        self.position += have
        return b"".join(parts)

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; returns how many there were. Where the stream can, without reading."""
        left = size
        if self._end is not None and left > len(self._buffer):
            left -= len(self._buffer)
            here = self._stream.tell()
            passed = min(left, max(self._end - here, 0))
            self._stream.seek(here + passed)
            self.position += len(self._buffer) + passed
            self._buffer = b""
            return size - left + passed
        while left > 0 and (part := self.read(min(left, _CHUNK))):
            left -= len(part)
        return size - left

    def seek_header(self, tail: bytes) -> int:
        """Pass over everything up to the next sound header; returns the number of bytes passed.

        `tail` is the bad block just read: a header may begin inside it.
        """
        window, passed = tail[1:], 1
        while True:
            more = self.read(_CHUNK)
            window += more
            for start in _header_starts(window):
                if _parse(window[start : start + _BLOCK]) is not None:
                    self._buffer = window[start:] + self._buffer
                    self.position -= len(window) - start
                    return passed + start
            if not more:
                return passed + len(window)
            passed += len(window) - (_BLOCK - 1)
            window = window[-(_BLOCK - 1) :]


def _end_of(stream: IO[bytes]) -> int | None:
    """The size of what the stream is of; None where it is read forward alone."""
    if not stream.seekable():
        return None
    here = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(here)
    return end


def _header_starts(window: bytes) -> Iterator[int]:
    """Where a whole header may begin in `window`, by the magic that POSIX and GNU headers carry."""
    found = window.find(_MAGIC, _MAGIC_AT)
    while 0 <= found <= len(window) - (_BLOCK - _MAGIC_AT):
        yield found - _MAGIC_AT
        found = window.find(_MAGIC, found + 1)
