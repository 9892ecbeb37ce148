"""CSV and JSON Lines: where they are read, the units that they make, and how those stay when they grow."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.read import text_tables
from llava_batch.read.find import find, find_units
from llava_batch.read.kinds import KINDS
from llava_batch.unit import Unit
from tests.shards import picture, put

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
