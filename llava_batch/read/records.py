"""Records of a text table: where each begins and ends, found in one pass, a bounded number of bytes
in memory.

A CSV record may hold line ends in quotes. Its rules are those of Python's `csv` (excel): a quote opens
only at a field's beginning, a doubled one within quotes is one, what follows a closing quote belongs to
the field. Empty lines are no records. One that does not end in `most` bytes ends at its first line
end and is damaged: a quote that nobody closes costs its own line. Where a record ends depends on the
bytes from its beginning on alone, so a run of whole records reads the same by itself as in the file.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

MOST_BYTES = 2**20
"""The longest record that is read."""

UNCLOSED = "a quote in it is not closed"
"""How what is wrong with such a record begins. To find that out, MOST_BYTES are looked at."""

_READ_BYTES = 2**18
_BOM = b"\xef\xbb\xbf"


class Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Record(NamedTuple):
    """One record; `data` is without its line end, and the first bytes alone of one that is too long."""

    start: int
    end: int
    """One past its data; the line end follows."""
    data: bytes
    problem: str | None


class Grammar(NamedTuple):
    """Where records end: `record` matches one with its line end, group 1 what is before that."""

    record: re.Pattern[bytes]
    line: re.Pattern[bytes]
    """As `record`, if nothing were quoted."""


LINES = Grammar(*[re.compile(rb"[ \t\r]*+([^\n]*+)\n")] * 2)


def csv_grammar(delimiter: bytes) -> Grammar:
    plain = rb"[^" + delimiter + rb"\r\n]*+"
    field = rb'(?:"(?:[^"]++|"")*+"' + plain + rb'|(?!")' + plain + rb")"
    record = rb"(" + field + rb"(?:" + delimiter + field + rb")*+)(?:\r\n|\r|\n)"
    return Grammar(re.compile(record), re.compile(rb"([^\r\n]*+)(?:\r\n|\r|\n)"))


def records(
    stream: Stream, grammar: Grammar, start: int = 0, most: int = MOST_BYTES
) -> Iterator[Record]:
    """The records of what `stream` gives from its place to its end; `start` is that place in the file."""
    reader = _Reader(stream, start, most)
    if start == 0:
        reader.skip_bom()
    while reader.has_more():
        found = reader.next(grammar)
        if found.data:
            yield found


class _Reader:
    """The bytes that were read and not yet given out, `_place` the first of them that counts."""

    def __init__(self, stream: Stream, start: int, most: int) -> None:
        self._stream, self._most = stream, most
        self._held, self._place, self._start = b"", 0, start
        self._ended = False

    def has_more(self) -> bool:
        if self._place == len(self._held) and not self._ended:
            self._more()
        return self._place < len(self._held)

    def skip_bom(self) -> None:
        while len(self._held) < len(_BOM) and not self._ended:
            self._more()
        if self._held.startswith(_BOM):
            self._place = len(_BOM)

    def next(self, grammar: Grammar) -> Record:
        """The next record, empty or not."""
        while True:
            whole = grammar.record.match(self._held, self._place)
            if whole and self._is_sure(whole) and len(whole[1]) <= self._most:
                return self._taken(whole, None)
            if self._ended or len(self._held) - self._place > self._most + len(b"\r\n"):
                return self._damaged(grammar)
            self._more()

    def _damaged(self, grammar: Grammar) -> Record:
        """The line that a record begins with which does not end in time."""
        line = grammar.line.match(self._held, self._place)
        if line is None or len(line[1]) > self._most:
            return self._too_long(grammar)
        return self._taken(line, f"{UNCLOSED} within {self._most} bytes")

    def _too_long(self, grammar: Grammar) -> Record:
        start, first = self._start + self._place, self._held[self._place :][: self._most]
        while (line := grammar.line.match(self._held, self._place)) is None:
            self._start, self._held, self._place = self._start + len(self._held), b"", 0
            self._more()
        end = self._taken(line, None).end
        return Record(start, end, first, f"{end - start} bytes, the limit is {self._most}")

    def _taken(self, match: re.Match[bytes], problem: str | None) -> Record:
        start, end = self._start + match.start(1), self._start + match.end(1)
        self._place = match.end()
        return Record(start, end, match[1], problem)

    def _is_sure(self, match: re.Match[bytes]) -> bool:
        r"""Whether its line end is whole: a `\r` may be half of one."""
        return self._ended or match.end() < len(self._held) or self._held[-1:] != b"\r"

    def _more(self) -> None:
        """Read on, without what was given out; at the end comes the line end that may be lacking."""
        piece = self._stream.read(_READ_BYTES)
        self._ended = not piece
        self._held = self._held[self._place :] + (piece or b"\n")
        self._start, self._place = self._start + self._place, 0
