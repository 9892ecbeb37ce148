"""CSV and JSON Lines: where they are read, the units that they make, and how those stay when they grow."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.read import text_tables
from llava_batch.read.columns import keep_schema
from llava_batch.read.find import find, find_units
from llava_batch.read.kinds import KINDS, first_row, read_rows, refuse_without_images
from llava_batch.read.reading import Reading
from llava_batch.read.records import csv_grammar, records
from llava_batch.read.row import Row
from llava_batch.read.source import read_blocks
from llava_batch.unit import Unit
from tests.nights import answers, night
from tests.outputs import EMPTY, ledger_of
from tests.shards import picture, put, reading

Fixed = dict[str, tuple[int, int]]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch) -> None:
    monkeypatch.setattr(text_tables, "ROWS_PER_UNIT", 3)


def table(path: Path, *values: str, end: str = "\n") -> Path:
    return put(path, "".join(f"{line}{end}" for line in ("path,n", *values)).encode())


def units(path: Path, fixed: Fixed | None = None) -> list[Unit]:
    return find([str(path)], rows=lambda base: fixed or {}).units


def rows_of(found: list[Unit]) -> Fixed:
    assert all(unit.numbers for unit in found)
    return {unit.name: unit.numbers for unit in found if unit.numbers}


def sources(found: list[Unit]) -> dict[str, str]:
    return {unit.name: unit.source for unit in found}


def refused(*inputs: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        find_units(map(str, inputs))
    return str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.NDJSON"])
def test_a_text_table_is_read_where_it_is_named_and_left_out_of_a_folder(tmp_path, name) -> None:
    put(tmp_path / "in" / name, b'{"path": "x.png"}\n' * 2)
    put(tmp_path / "in" / "x.png", picture())
    assert [u.kind for u in find_units([str(tmp_path / "in" / name)])] in (["csv"], ["jsonl"])
    found = find([str(tmp_path / "in")])
    assert [u.kind for u in found.units] == ["files"]
    assert found.left_out == {"." + name.split(".")[1].lower(): 1}


def test_a_pattern_names_a_text_table_by_its_extension_alone(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "x,1")
    table(tmp_path / "b.csv", "x,1")
    put(tmp_path / "x.png", picture())
    assert [u.name for u in find_units([f"{tmp_path}/*.csv"])] == ["a-00000", "b-00000"]
    assert [u.name for u in find_units([f"{tmp_path}/{{a,b}}.csv"])] == ["a-00000", "b-00000"]
    found = find([f"{tmp_path}/*"])
    assert [u.kind for u in found.units] == ["files"]
    assert found.left_out == {".csv": 2}


def test_a_folder_of_nothing_but_text_tables_says_how_they_are_read(tmp_path: Path) -> None:
    table(tmp_path / "in" / "a.csv", "x,1")
    assert "1 .csv; check the path (CSV and JSONL tables are read where" in refused(tmp_path / "in")


def test_a_table_is_split_into_units_of_so_many_rows(tmp_path: Path) -> None:
    found = units(table(tmp_path / "list.csv", *(f"x,{n}" for n in range(7))))
    assert rows_of(found) == {"list-00000": (0, 3), "list-00001": (3, 6), "list-00002": (6, 7)}
    data = (tmp_path / "list.csv").read_bytes()
    assert [data[slice(*u.span)] for u in found if u.span][1:] == [b"x,3\nx,4\nx,5", b"x,6"]
    assert [KINDS["csv"].count(unit) for unit in found] == [3, 3, 1]


@pytest.mark.parametrize("text", ["", "path,n", "path,n\n", "\n\npath,n\n\n", "\ufeffpath,n\r\n"])
def test_a_table_without_rows_makes_no_unit(tmp_path: Path, text: str) -> None:
    assert units(put(tmp_path / "list.csv", text.encode())) == []


def test_a_table_that_grows_makes_new_units_and_leaves_those_that_it_made(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    first = units(table(path, "x,0", "x,1", "x,2", "x,3"))
    grown = units(table(path, *(f"x,{n}" for n in range(9))), rows_of(first))
    assert rows_of(grown) == {"list-00000": (0, 3), "list-00001": (3, 4), "list-00002": (4, 7),
                              "list-00003": (7, 9)}  # fmt: skip
    assert sources(grown).items() >= sources(first).items()
    again = units(table(path, *(f"x,{n}" for n in range(11))), rows_of(grown))
    assert rows_of(again) == rows_of(grown) | {"list-00004": (9, 11)}
    assert sources(again).items() >= sources(grown).items()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6).map(sorted),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    last=st.sampled_from(["", "\n", "\n\n"]),
)
def test_however_a_table_grows_its_units_stay(tmp_path_factory, lengths, end, last) -> None:
    path = tmp_path_factory.mktemp("t") / "list.csv"
    fixed: Fixed = {}
    before: dict[str, str] = {}
    for length in lengths:
        lines = ["path,n", *(f'x,"{n}{end}"' for n in range(length))]
        found = units(put(path, (end.join(lines) + last).encode()), fixed)
        assert sources(found).items() >= before.items()
        ranges = [unit.numbers for unit in found if unit.numbers]
        assert [n for a, b in ranges for n in range(a, b)] == [*range(length)]
        fixed, before = rows_of(found), sources(found)


def test_a_line_end_at_the_files_end_or_another_one_changes_nothing(tmp_path: Path) -> None:
    path = table(tmp_path / "list.csv", "x,0", "x,1")
    before = sources(units(path))
    assert sources(units(put(path, path.read_bytes()[:-1]))) == before
    assert sources(units(table(path, "x,0", "", "x,1", "", end="\r\n"))) == before


def test_a_changed_line_changes_its_own_unit_and_a_changed_header_all(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    before = sources(units(table(path, *(f"x,{n}" for n in range(7)))))
    after = sources(units(table(path, *(f"x,{n + 10 * (n == 4)}" for n in range(7)))))
    assert [name for name in before if before[name] != after[name]] == ["list-00001"]
    renamed = sources(units(put(path, path.read_bytes().replace(b"path,n", b"path,m"))))
    assert renamed.keys() == before.keys() and not {*renamed.values()} & {*after.values()}


@pytest.mark.parametrize(
    "head, what",
    [
        (b'path,"n\n', "names no columns (a quote in it is not closed"),
        (b"path,\xff\n", "names no columns ('utf-8' codec"),
        ("path,n\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b"path,n,path\n", "two columns are called path; rename one"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(tmp_path: Path, head: bytes, what: str) -> None:
    assert what in refused(put(tmp_path / "a.csv", head + b"x,1\n"))


def rows(path: Path, how: Reading | None = None) -> list[Row]:
    return [row for unit in units(path) for row in read_rows(unit, how or reading())]


def outcomes(path: Path, how: Reading | None = None) -> dict[str, str]:
    """Each row's name, with its first URI below the folder, or what is wrong with it."""
    return {
        row.name: row.error[1] if row.error else row.uris[0].removeprefix(f"{path.parent}/")
        for row in rows(path, how)
    }


def test_rows_are_numbered_through_the_file_and_their_paths_start_at_its_folder(tmp_path) -> None:
    path = put(
        tmp_path / "a.csv", b'path,n\nx.png,1\n\n"a ""b"".png",2\n/abs.png,3\ns3://b/k.png,4\n'
    )
    assert outcomes(path) == {"0": "x.png", "1": 'a "b".png', "2": "/abs.png", "3": "s3://b/k.png"}
    assert [u.name for u in units(path)] == ["a-00000", "a-00001"]


def test_all_values_of_a_csv_file_are_text(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", '\ufeffpath,n,t\r\nx.png,007,"a\r\nb"\r\ny.png,,é\r\n'.encode())
    assert [row.columns for row in rows(path)] == [
        {"path": "x.png", "n": "007", "t": "a\r\nb"}, {"path": "y.png", "n": "", "t": "é"}]  # fmt: skip
    (unit,) = units(path)
    keep = keep_schema(["n", "path"], unit, first_row(unit, reading()))
    assert [(r["keep.n"], r["keep.path"]) for r in table_rows(unit, keep)] == [
        ("007", "x.png"), ("", "y.png")]  # fmt: skip


def table_rows(unit: Unit, keep: pa.Schema) -> list[dict]:
    *blocks, _ = [r for block in read_blocks(unit, reading(keep)) for r in block.to_pylist()]
    return blocks


def test_json_values_keep_their_types(tmp_path: Path) -> None:
    lines = [{"image": "x.png", "n": 7, "f": 0.5, "t": True, "l": ["a"], "s": {"a": 1}},
             {"image": ["y.png", "z.png"], "n": None}]  # fmt: skip
    path = put(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)).encode())
    first, second = rows(path)
    assert first.columns == lines[0]
    assert [second.columns["n"], len(second.uris)] == [None, 2]
    (unit,) = units(path)
    keep = keep_schema(["n", "f", "t", "l", "s", "n2:int64"][:5], unit, first_row(unit, reading()))
    assert [str(kind) for kind in keep.types] == ["double", "double", "bool", "list<item: string>", "string"]  # fmt: skip
    assert table_rows(unit, keep)[0]["keep.n"] == 7.0


def test_a_bad_line_costs_its_own_row(tmp_path: Path) -> None:
    bad = put(
        tmp_path / "a.csv", b'path,n\nx,1\ny\nz,1,2\n\xff,1\nw,"2\nv,3\n' + b"x" * 2**20 + b",1\n,5"
    )
    said = outcomes(bad)
    assert {name: what for name, what in said.items() if "%" not in name} == {
        "0": "x", "5": "v", "7": "null or empty path"}  # fmt: skip
    assert {name: what[:25] for name, what in said.items() if "%" in name} == {
        "1%row": "1 values, the header name", "2%row": "3 values, the header name",
        "3%row": "not UTF-8: 'utf-8' codec ", "4%row": "a quote in it is not clos",
        "6%row": "1048578 bytes, the limit "}  # fmt: skip
    lines = [b'{"path": "x"}', b"{", b"[1]", b"[" * 100_000, b'{"path": 5}', b'{"path": {"bytes": "x"}}',
             b'{"n": 1}', b'{"path": "\xff"}', b'{"path": "y"}']  # fmt: skip
    said = outcomes(put(tmp_path / "b.jsonl", b"\n".join(lines)))
    assert [name for name in said if "%" not in name] == ["0", "6", "8"]
    assert [said[f"{n}%row"][:19] for n in (1, 2, 3, 4, 5, 7)] == [
        "no JSON: Expecting ", "no JSON object but ", "no JSON: maximum re", "path holds no path:", "path holds no path:",
        "no JSON: 'utf-8' co"]  # fmt: skip


def test_a_key_column_names_the_rows(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", b"path,name\nx,a\ny,b#\nz,a\nw\n")
    assert outcomes(path, reading(key_column="name")) == {
        "a": "x", "b%23": "y", "a%dup2": "z", "3%row": "1 values, the header names 2 columns"}  # fmt: skip


def test_tabs_part_the_columns_of_a_tsv_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.tsv", b'path\tt\nx.png\t"a\tb", c\n')
    assert [row.columns["t"] for row in rows(path)] == ["a\tb, c"]


def test_a_table_without_images_is_refused_and_says_its_columns(tmp_path: Path) -> None:
    found = units(put(tmp_path / "a.csv", b"a;b\n1;2\n"))
    with pytest.raises(UsageError, match=r"no column holds images.*a;b \(string\)"):
        refuse_without_images(found, reading())


def test_a_table_that_is_quoted_by_no_rule_of_csv_is_refused(tmp_path: Path, monkeypatch) -> None:
    # Each of its lines costs a look at a megabyte: a million of them took hours.
    monkeypatch.setattr(text_tables, "_MOST_UNCLOSED", 50)
    path = put(tmp_path / "a.csv", b"path,n\n" + b'5" x 7",".png\n' * 50 + b"x,1\n")
    assert len(rows(path)) == 51
    said = refused(put(path, b"path,n\n" + b'5" x 7",".png\n' * 51))
    assert "over 50 lines open a quote that is not closed" in said


pieces = st.sampled_from(['"', '""', ",", "\n", "\r\n", "a", "é", " ", ",x\n", '"a\nb",', "\x00"])


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.lists(pieces, max_size=60).map("".join), most=st.integers(1, 5))
def test_rows_by_units_are_those_that_pythons_csv_gives(tmp_path_factory, text, most) -> None:
    data = ("path,n\n" + text).encode()
    whole = [*records(io.BytesIO(data), csv_grammar(b","))]
    if any(record.problem for record in whole):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_tables, "ROWS_PER_UNIT", most)
        path = put(tmp_path_factory.mktemp("t") / "a.csv", data)
        ours = rows(path, reading(image_column="path"))
    _, *theirs = [r for r in csv.reader(io.StringIO(data.decode(), newline="")) if r]
    assert len(ours) == len(theirs)
    for number, (row, values) in enumerate(zip(ours, theirs, strict=True)):
        assert row.key == str(number)
        if len(values) == 2:
            assert row.columns == {"path": values[0], "n": values[1]}
        else:
            assert row.error and row.error[0] == "shard_damaged"


class TestNights:
    """A table that grows, night by night, in one output folder."""

    def test_a_table_that_only_grows_opens_no_unit_again(self, tmp_path: Path) -> None:
        path, out = tmp_path / "list.csv", tmp_path / "out"
        for length, todo in ((4, ["list-00000", "list-00001"]), (4, []), (5, ["list-00002"]), (5, []),
                             (9, ["list-00003", "list-00004"])):  # fmt: skip
            table(path, *(f"x{n},{n}" for n in range(length)))
            assert [u.name for u in night(out, path).todo] == todo
            assert len(answers(out)) == length
        assert sorted(answers(out))[:5] == [
            "list-00000/0", "list-00000/1", "list-00000/2", "list-00001/3", "list-00002/4"]  # fmt: skip

    def test_a_unit_that_a_kill_left_open_keeps_its_rows_when_the_table_grows(
        self, tmp_path
    ) -> None:
        path, out = tmp_path / "list.csv", tmp_path / "out"
        table(path, *(f"x{n},{n}" for n in range(4)))
        ledger = ledger_of(out)
        ledger.begin(units(path), EMPTY)  # and the run was killed
        table(path, *(f"x{n},{n}" for n in range(9)))
        assert [u.numbers for u in night(out, path).todo] == [(0, 3), (3, 4), (4, 7), (7, 9)]
        assert len(answers(out)) == 9 and night(out, path).todo == []

    def test_a_changed_line_is_answered_again_with_its_unit_and_asked_for_where_it_is_much(
        self, tmp_path
    ):
        path, out = tmp_path / "list.csv", tmp_path / "out"
        lines = [f"x{n},{n}" for n in range(40)]
        night(out, table(path, *lines))
        lines[4] = "y,4"
        assert [u.name for u in night(out, table(path, *lines)).todo] == ["list-00001"]
        lines.insert(0, "new,0")  # all rows after it have other numbers
        with pytest.raises(UsageError, match="of 40 answered rows would be answered again"):
            night(out, table(path, *lines))
        kept = night(out, table(path, *lines), on_change="keep")
        assert [u.numbers for u in kept.todo] == [(40, 41)]

    def test_rows_that_are_cut_off_are_gone_where_that_is_wanted(self, tmp_path: Path) -> None:
        path, out = tmp_path / "list.csv", tmp_path / "out"
        lines = [f"x{n},{n}" for n in range(40)]
        night(out, table(path, *lines))
        work = night(out, table(path, *lines[:37]))
        assert [u.numbers for u in work.todo] == [(36, 37)]
        assert len(answers(out)) == 37
        assert [u.numbers for u in night(out, table(path, *lines)).todo] == [(36, 39), (39, 40)]
        assert len(answers(out)) == 40
