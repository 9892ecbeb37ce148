"""CSV and JSON Lines → rows: tables of image paths, read where they are named outright.

A file is split into units of at most ROWS_PER_UNIT rows, each a run of bytes fingerprinted by what is in it:
a file that grows makes new units and leaves those that it made (`fixed`: which rows they had). A key is
the key column's value, else the row's number in the file. A line that does not read costs its own row.

CSV: the first record names the columns; all values are text, as they stand there. JSON Lines: an object a
line; its values are JSON's own, and its columns those of the file's first lines.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pyarrow as pa

from llava_batch.errors import UsageError
from llava_batch.read.image_column import find_image_column, find_key_column
from llava_batch.read.reading import Fixed, Kind, Reading
from llava_batch.read.records import LINES, UNCLOSED, Grammar, Record, csv_grammar, records
from llava_batch.read.row import Row, damaged, missing
from llava_batch.read.table_rows import UNKEYED, Names, TableRows
from llava_batch.read.uris import refuse_the_web, root_of
from llava_batch.storage import Location
from llava_batch.unit import Unit

ROWS_PER_UNIT = 10_000

_FIRST_LINES = 100
_MOST_UNCLOSED = 10_000
_SCAN_BYTES = 8 * 2**20
"""Asked of a storage at once while a whole table is looked through."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Unreadable(ValueError):
    """What is wrong with one record."""


class TextTable(Kind):
    """What CSV and JSON Lines share."""

    only_named = True
    looks_for_units = True

    def grammar(self, path: str) -> Grammar:
        """Where the file's records end."""
        raise NotImplementedError

    def head(self, found: Iterator[Record], unit: Unit) -> bytes:
        """What stands before the first row; taken from `found`."""
        return b""

    def values(self, record: Record, schema: pa.Schema, unit: Unit) -> dict[str, Any]:
        """A row's values.

        Raises:
            Unreadable: it has none.
        """
        raise NotImplementedError

    def columns(self, unit: Unit) -> pa.Schema:
        raise NotImplementedError

    def units(self, whole: Unit, size: int, fixed: Fixed) -> list[Unit]:
        with whole.fs.open_input_stream(
            whole.path, compression=None, buffer_size=_SCAN_BYTES
        ) as stream:
            found = records(stream, self.grammar(whole.path))
            head = self.head(found, whole)
            return [*_split(whole, head, _with_few_unclosed(found, whole), fixed)]

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        try:
            schema = self.columns(unit)
            image = find_image_column(schema, reading.image_column, unit.shown)
            key = find_key_column(schema, reading.key_column, unit.shown)
        except UsageError as error:
            for number, _ in self._records(unit):
                yield missing(str(number), str(error))
            return
        rows_of = TableRows(
            image=image,
            names=Names(key, unit.retry or frozenset()),
            max_image_bytes=reading.max_image_bytes,
            root=root_of(unit, reading),
        )
        for number, record in self._records(unit):
            try:
                values = {image: None} | self.values(record, schema, unit)
                _refuse_no_path(image, values[image])
            except Unreadable as error:
                yield damaged(str(number), UNKEYED, str(error))
            else:
                yield rows_of.row(number, values)

    def refuse(self, unit: Unit, reading: Reading) -> None:
        schema = self.columns(unit)
        find_image_column(schema, reading.image_column, unit.shown)
        find_key_column(schema, reading.key_column, unit.shown)
        refuse_the_web(self.rows(unit, reading), reading, unit.shown)

    def count(self, unit: Unit) -> int:
        first, end = unit.numbers or (0, 0)
        return end - first

    def _records(self, unit: Unit) -> Iterator[tuple[int, Record]]:
        """The unit's records, each with its row's number in the file."""
        assert unit.span is not None and unit.numbers is not None
        start, end = unit.span
        with unit.fs.open_input_file(unit.path) as file:
            file.seek(start)
            found = records(_Part(file, end - start), self.grammar(unit.path), start)
            yield from enumerate(found, unit.numbers[0])


class Csv(TextTable):
    """`.csv`, and `.tsv` with tabs."""

    extensions = frozenset({".csv", ".tsv"})

    def grammar(self, path: str) -> Grammar:
        return csv_grammar(_delimiter(path).encode())

    def head(self, found: Iterator[Record], unit: Unit) -> bytes:
        first = next(found, None)
        if first is None:
            return b""
        _header(first, unit)
        return first.data

    def columns(self, unit: Unit) -> pa.Schema:
        with unit.fs.open_input_file(unit.path) as file:
            first = next(records(file, self.grammar(unit.path)), None)
        names = [] if first is None else _header(first, unit)
        return pa.schema([(name, pa.string()) for name in names])

    def values(self, record: Record, schema: pa.Schema, unit: Unit) -> dict[str, Any]:
        if record.problem:
            raise Unreadable(record.problem)
        try:
            found = fields_of(record.data, _delimiter(unit.path))
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8: {error}") from None
        if len(found) != len(schema):
            raise Unreadable(f"{len(found)} values, the header names {len(schema)} columns")
        return dict(zip(schema.names, found, strict=True))


class JsonLines(TextTable):
    """`.jsonl` and `.ndjson`."""

    extensions = frozenset({".jsonl", ".ndjson"})

    def grammar(self, path: str) -> Grammar:
        return LINES

    def columns(self, unit: Unit) -> pa.Schema:
        """The columns of the file's first lines, each of the type of its first value."""
        typed: dict[str, pa.DataType] = {}
        with unit.fs.open_input_file(unit.path) as file:
            for record in islice(records(file, LINES), _FIRST_LINES):
                for name, kind in _types(record).items():
                    if typed.get(name, pa.null()) == pa.null():
                        typed[name] = kind
        return pa.schema([*typed.items()])

    def values(self, record: Record, schema: pa.Schema, unit: Unit) -> dict[str, Any]:
        return _object(record)


def text_columns(at: Location) -> pa.Schema:
    """The columns of the CSV or JSON Lines file there.

    Raises:
        UsageError: it names none.
    """
    return _kind_of(at).columns(_whole(at))


def text_rows(at: Location) -> Iterator[dict[str, Any] | None]:
    """Each row's values; None for one that does not read."""
    kind, whole = _kind_of(at), _whole(at)
    schema = kind.columns(whole)
    with at.fs.open_input_stream(at.path, compression=None) as stream:
        found = records(stream, kind.grammar(at.path))
        kind.head(found, whole)
        for record in found:
            try:
                yield kind.values(record, schema, whole)
            except Unreadable:
                yield None


def _kind_of(at: Location) -> TextTable:
    return Csv() if at.path.lower().endswith(tuple(Csv.extensions)) else JsonLines()


def _whole(at: Location) -> Unit:
    return Unit(name="", kind="", path=at.path, shown=at.shown, fs=at.fs, source="")


def _split(whole: Unit, head: bytes, found: Iterator[Record], fixed: Fixed) -> Iterator[Unit]:
    """The file's units in order: those that earlier runs made, of the same rows, then new ones."""
    starts = {rows[0]: (name, rows[1]) for name, rows in fixed.items()}
    free = (n for number in count() if (n := f"{whole.name}-{number:05d}") not in fixed)
    start = 0
    while True:
        following = min((row for row in starts if row > start), default=start + ROWS_PER_UNIT)
        name, end = starts.get(start) or ("", min(start + ROWS_PER_UNIT, following))
        run = _run(head, islice(found, end - start))
        if run is None:
            return
        num_rows, span, source = run
        rows = (start, start + num_rows)
        yield replace(whole, name=name or next(free), source=source, span=span, numbers=rows)
        start = end


def _with_few_unclosed(found: Iterator[Record], unit: Unit) -> Iterator[Record]:
    """The records, as long as those with a quote that is not closed are the exception.

    Raises:
        UsageError: they are not; each costs a look at all that a record may be long.
    """
    num_unclosed = 0
    for record in found:
        if record.problem and record.problem.startswith(UNCLOSED):
            num_unclosed += 1
        if num_unclosed > _MOST_UNCLOSED:
            raise UsageError(
                f"{unit.shown}: over {_MOST_UNCLOSED} lines open a quote that is not closed; write "
                "quotes within a field as CSV does, doubled and the field in quotes"
            )
        yield record


def _run(head: bytes, found: Iterator[Record]) -> tuple[int, tuple[int, int], str] | None:
    """How many records there are, where they lie, and the fingerprint of what is in them; None of none."""
    digest = hashlib.sha256(head)
    number, start, end = 0, None, 0
    for record in found:
        number, start, end = number + 1, record.start if start is None else start, record.end
        digest.update(b"%d\n" % (record.end - record.start))
        digest.update(record.data)
    return None if start is None else (number, (start, end), digest.hexdigest()[:32])


class _Part:
    """So many bytes of an open file, from its place on."""

    def __init__(self, file: pa.NativeFile, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int, /) -> bytes:
        data: bytes = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _delimiter(path: str) -> str:
    return "\t" if path.lower().endswith(".tsv") else ","


_FIELD = {
    mark: re.compile(
        rf'(?:"(?P<quoted>(?:[^"]++|"")*+)"(?P<rest>[^{mark}]*+)|(?P<plain>[^{mark}]*+))({mark}|\Z)'
    )
    for mark in ",\t"
}


def fields_of(data: bytes, delimiter: str) -> list[str]:
    """The fields of one sound CSV record.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    text = data.decode()
    if '"' not in text:
        return text.split(delimiter)
    found, place, ended = [], 0, False
    while not ended:
        match = _FIELD[delimiter].match(text, place)
        assert match is not None, "a record's fields are what its grammar says"
        quoted, plain = match["quoted"], match["plain"]
        found.append(plain if quoted is None else quoted.replace('""', '"') + match["rest"])
        place, ended = match.end(), match[4] == ""
    return found


def _header(first: Record, unit: Unit) -> list[str]:
    """The columns that a CSV file's first record names.

    Raises:
        UsageError: it is none, or names a column twice.
    """
    if first.data.startswith(_UTF16):
        raise UsageError(f"{unit.shown}: it is UTF-16; save it as UTF-8")
    try:
        if first.problem:
            raise Unreadable(first.problem)
        names = fields_of(first.data, _delimiter(unit.path))
    except (Unreadable, UnicodeDecodeError) as error:
        raise UsageError(
            f"{unit.shown}: its first line names no columns ({error}); mend it"
        ) from None
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{unit.shown}: two columns are called {twice}; rename one")
    return names


def _refuse_no_path(column: str, cell: Any) -> None:
    """Raises `Unreadable` where a cell holds neither a path nor nothing, but what JSON has besides."""
    for each in cell if isinstance(cell, list) else [cell]:
        path = each.get("path") if isinstance(each, dict) and not each.get("bytes") else each
        if path is not None and not isinstance(path, str):
            raise Unreadable(f"{column} holds no path: {json.dumps(each):.80}")


def _object(record: Record) -> dict[str, Any]:
    if record.problem:
        raise Unreadable(record.problem)
    try:
        value = json.loads(record.data)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Unreadable(f"no JSON object but {type(value).__name__}")
    return value


def _types(record: Record) -> dict[str, pa.DataType]:
    """The types of one line's values; none where it does not read."""
    try:
        return {name: _type(value) for name, value in _object(record).items()}
    except Unreadable:
        return {}


def _type(value: Any) -> pa.DataType:
    """JSON knows one kind of number: the next line's may have a fraction."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int | float):
        return pa.float64()
    texts = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
    return pa.list_(pa.string()) if texts else pa.string()
