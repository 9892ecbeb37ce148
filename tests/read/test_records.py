"""Records of a text table: their ends are where Python's csv has them, whatever piece they are read by."""

import csv
import io
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.read import records as records_module
from llava_batch.read.records import LINES, Grammar, csv_grammar, records
from llava_batch.read.text_tables import fields_of

CSV = csv_grammar(b",")


def found(data: bytes, grammar: Grammar = CSV, most: int = 100, start: int = 0) -> list[tuple]:
    return [tuple(r) for r in records(io.BytesIO(data), grammar, start, most)]


def values(data: bytes, most: int = 10**6) -> list[list[str]]:
    assert not any(problem for *_, problem in found(data, most=most))
    return [fields_of(bytes_, ",") for _, _, bytes_, _ in found(data, most=most)]


def by_csv(data: bytes) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(data.decode(), newline="")) if row]


def is_closed(data: bytes) -> bool:
    try:
        return bool([*csv.reader(io.StringIO(data.decode(), newline=""), strict=True)]) or not data
    except csv.Error as error:
        return "unexpected end of data" not in str(error)


pieces = st.sampled_from(
    ['"', '""', ",", "\n", "\r\n", "\r", "a", "é", " ", "x,y", '"a\nb"', "\x00"]
)
texts = st.lists(pieces, max_size=40).map("".join)


@pytest.fixture(params=[1, 3, 2**18])
def read_bytes(request, monkeypatch) -> Iterator[int]:
    monkeypatch.setattr(records_module, "_READ_BYTES", request.param)
    yield request.param


@settings(max_examples=300, deadline=None)
@given(text=texts, piece=st.sampled_from([1, 2, 3, 7, 100]))
def test_a_csv_files_records_are_those_of_pythons_csv(text: str, piece: int) -> None:
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "_READ_BYTES", piece)
        if any(problem for *_, problem in found(data, most=10**6)):
            return  # a quote that is not closed: Python takes all that follows
        assert values(data) == by_csv(data)


@settings(max_examples=300, deadline=None)
@given(text=texts, most=st.sampled_from([1, 2, 5, 20, 1000]), piece=st.sampled_from([1, 3, 100]))
def test_a_run_of_records_reads_by_itself_as_in_the_file(text: str, most: int, piece: int) -> None:
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "_READ_BYTES", piece)
        whole = found(data, most=most)
        for first in range(len(whole)):
            for last in range(first, len(whole)):
                start, end = whole[first][0], whole[last][1]
                assert found(data[start:end], most=most, start=start) == whole[first : last + 1]


@settings(max_examples=300, deadline=None)
@given(text=texts, most=st.sampled_from([1, 4, 1000]))
def test_where_records_end_does_not_depend_on_how_the_file_is_read(text: str, most: int) -> None:
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "_READ_BYTES", 1)
        slowly = found(data, most=most)
    assert slowly == found(data, most=most)


def test_a_quote_that_nobody_closes_costs_its_own_line(read_bytes: int) -> None:
    rows = found(b'a,b\n1,"two\n3,4\n5,6\n')
    assert [(data, bool(problem)) for _, _, data, problem in rows] == [
        (b"a,b", False), (b'1,"two', True), (b"3,4", False), (b"5,6", False)]  # fmt: skip


def test_a_quote_that_is_closed_too_far_away_costs_its_own_line(read_bytes: int) -> None:
    rows = found(b'1,"two\n' + b"3,4\n" * 100 + b'5"\n6,7')
    assert len(rows) == 103 and [n for n, row in enumerate(rows) if row[3]] == [0]
    assert "not closed within 100 bytes" in rows[0][3]


def test_a_line_that_is_too_long_costs_itself_and_little_memory(read_bytes: int) -> None:
    rows = found(b"a,b\n" + b"x" * 5000 + b"\n3,4\n")
    assert [(start, end) for start, end, *_ in rows] == [(0, 3), (4, 5004), (5005, 5008)]
    assert rows[1][2:] == (b"x" * 100, "5000 bytes, the limit is 100")


@pytest.mark.parametrize("grammar", [CSV, LINES])
def test_a_line_of_the_limit_is_read_and_one_byte_more_is_not(grammar: Grammar) -> None:
    for end in (b"", b"\n", b"\r\n"):
        ((*_, problem),) = found(
            b"x" * (100 if grammar is CSV or end != b"\r\n" else 99) + end, grammar
        )
        assert problem is None
        ((*_, problem),) = found(b"x" * 101 + end, grammar)
        assert problem is not None


def test_a_mark_of_byte_order_is_no_part_of_the_first_record(read_bytes: int) -> None:
    bom = b"\xef\xbb\xbf"
    assert found(bom + b"a,b\n1,2")[0][:3] == (3, 6, b"a,b")
    assert found(bom) == found(bom + b"\n") == found(b"") == []


def test_lines_end_at_line_feeds_alone_and_blank_ones_are_none(read_bytes: int) -> None:
    rows = found(b'{"a": "\r"}\r\n \t\r\n\n  {"b": 1}\n{}', LINES)
    assert [data for _, _, data, _ in rows] == [b'{"a": "\r"}\r', b'{"b": 1}', b"{}"]
