"""Hive partitions: columns of their rows, and in names that are the same whatever folder was given."""

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.read.columns import keep_schema
from llava_batch.read.find import find, find_units
from llava_batch.read.kinds import first_row, read_rows
from llava_batch.unit import Unit
from tests.nights import answers, night, read_again
from tests.shards import picture, put, put_parquet, reading, rows_of, tar_bytes


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Two days, one of them with hours; a shard of each kind."""
    lake = tmp_path / "lake"
    put_parquet(lake / "dt=2026-11-01" / "00000.parquet", {"image": [picture(1), picture(2)]})
    put(lake / "dt=2026-11-02" / "h=00" / "a.tar", tar_bytes({"x.png": picture(3)}))
    put(lake / "dt=2026-11-02" / "h=01" / "a.tar", tar_bytes({"x.png": picture(4)}))
    put(lake / "dt=2026-11-02" / "h=01" / "photos" / "y.png", picture(5))
    return lake


def found(*inputs: Path, partitions: tuple[str, ...] = ()) -> dict[str, Unit]:
    return {u.name: u for u in find(map(str, inputs), partitions=partitions).units}


ALL = ["dt=2026-11-01/00000", "dt=2026-11-02/h=00/a", "dt=2026-11-02/h=01-00000", "dt=2026-11-02/h=01/a"]  # fmt: skip


def test_names_and_ids_are_the_same_whatever_folder_was_given(lake: Path) -> None:
    whole = found(lake)
    assert sorted(whole) == ALL
    day = lake / "dt=2026-11-02"
    for given in (lake / "dt=2026-11-01", lake / "dt=2026-11-01" / "00000.parquet", day,
                  day / "h=00", day / "h=00" / "a.tar", day / "h=01", day / "h=01" / "photos",
                  day / "h=01" / "photos" / "y.png"):  # fmt: skip
        part = found(given)
        assert (part and part.items() <= whole.items()) or _same(part, whole)
    assert sorted(found(day / "h=00", day / "h=01", lake / "dt=2026-11-01")) == ALL
    assert sorted(found(day / "h=01", lake)) == ALL


def _same(part: dict[str, Unit], whole: dict[str, Unit]) -> bool:
    """But for how the path is shown."""
    keys = ("kind", "path", "source", "members", "partition")
    return all(getattr(u, k) == getattr(whole[n], k) for n, u in part.items() for k in keys)


def test_what_lies_above_the_table_counts_as_in_any_folder(lake: Path) -> None:
    put(lake.parent / "other" / "dt=2026-11-01" / "00000.tar", tar_bytes({"x.png": picture(3)}))
    assert sorted(found(lake.parent)) == sorted(
        [f"lake/{n}" for n in ALL] + ["other/dt=2026-11-01/00000"]
    )


def test_partitions_are_columns_of_their_rows_as_text(lake: Path) -> None:
    units = found(lake)
    first = units["dt=2026-11-01/00000"]
    keep = keep_schema(["dt:date32", "dt2:string"][:1], first, first_row(first, reading()))
    rows = rows_of(first, reading(keep, "dt"))
    assert [str(r["keep.dt"]) for r in rows] == ["2026-11-01"] * 2
    assert [json.loads(r["columns"]) for r in rows] == [{"dt": "2026-11-01"}] * 2
    for name in ALL[1:]:
        (row,) = read_rows(units[name], reading(None, "dt", "h"))
        assert row.columns["dt"] == "2026-11-02" and row.columns["h"] == name.split("h=")[1][:2]
    assert keep_schema(["dt"], first, first_row(first, reading())).field("dt").type == pa.string()


def test_values_are_percent_decoded_and_the_default_partition_is_null(tmp_path: Path) -> None:
    odd = tmp_path / "t" / "city=S%C3%A3o%20Paulo%2FBR" / "dt=__HIVE_DEFAULT_PARTITION__" / "k=a=b"
    put_parquet(odd / "0.parquet", {"image": [picture()], "n": [1]})
    (unit,) = find_units([str(tmp_path / "t")])
    (row,) = read_rows(unit, reading(None, "city"))
    assert row.columns == {"city": "São Paulo/BR", "dt": None, "k": "a=b"}
    texts = pa.schema([(name, pa.string()) for name in ("city", "dt", "k")])
    hive = ds.partitioning(texts, flavor="hive")
    there = ds.dataset(tmp_path / "t", partitioning=hive).to_table(texts.names)
    assert there.to_pylist() == [row.columns]


def test_a_files_own_column_gives_way_to_the_partition_as_in_pyarrow_and_duckdb(tmp_path) -> None:
    path = put_parquet(
        tmp_path / "t" / "dt=1" / "0.parquet", {"image": [picture()], "dt": ["file's"]}
    )
    (row,) = read_rows(find_units([str(path)])[0], reading(None, "dt"))
    hive = ds.partitioning(pa.schema([("dt", pa.string())]), flavor="hive")
    theirs = ds.dataset(tmp_path / "t", partitioning=hive).to_table(["dt"])["dt"].to_pylist()
    assert [row.columns["dt"]] == theirs == ["1"]
    said = duckdb.sql(f"SELECT dt FROM read_parquet('{path}', hive_partitioning=true)")
    assert said is not None and said.fetchall() == [(1,)]


@pytest.mark.parametrize(
    "patterns, names",
    [
        (("dt=2026-11-01",), ALL[:1]),
        (("dt=2026-11-*",), ALL),
        (("dt=2026-11-01", "dt=2026-11-02"), ALL),
        (("dt=*", "h=01"), ALL[2:]),
        (("h=00",), ALL[1:2]),
    ],
)
def test_only_the_partitions_that_are_named_are_read(lake: Path, patterns, names) -> None:
    there = find([str(lake)], partitions=patterns)
    assert sorted(u.name for u in there.units) == names
    assert there.skipped == ({"outside --partition": 4 - len(names)} if len(names) < 4 else {})


def test_a_partition_that_is_there_and_empty_is_nothing_to_do(lake: Path) -> None:
    (lake / "dt=2026-11-03").mkdir()
    assert found(lake, partitions=("dt=2026-11-03",)) == {}


@pytest.mark.parametrize(
    "pattern, said",
    [
        ("dt=2026-12-*", "there are dt=2026-11-01, dt=2026-11-02, h=00 … h=01"),
        ("day=1", "there are dt="),
    ],
)
def test_a_pattern_that_no_partition_fits_is_refused(lake: Path, pattern: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"--partition {pattern[:4]}") as error:
        found(lake, partitions=(pattern,))
    assert said in str(error.value)


def test_a_pattern_without_a_key_is_refused() -> None:
    with pytest.raises(UsageError, match="--partition 2026-11-01: give it as KEY=PATTERN"):
        Job(partition=("2026-11-01",))


def test_nights_by_partition_agree_with_a_run_over_the_whole(lake: Path, tmp_path: Path) -> None:
    # The second night's folder was refused: both made a unit of one name.
    night(tmp_path / "by-day", lake / "dt=2026-11-01")
    night(tmp_path / "by-day", lake / "dt=2026-11-02" / "h=00" / "a.tar")
    night(tmp_path / "by-day", lake / "dt=2026-11-02")
    night(tmp_path / "whole", lake)
    assert answers(tmp_path / "by-day") == answers(tmp_path / "whole")
    assert len(answers(tmp_path / "whole")) == 5
    assert night(tmp_path / "by-day", lake).todo == []
    assert night(tmp_path / "whole", lake / "dt=2026-11-02" / "h=01").todo == []


def test_loose_files_of_a_new_day_are_answered_and_those_of_others_stay(tmp_path: Path) -> None:
    for n in range(3):
        put(tmp_path / "lake" / f"dt={n}" / "x.png", picture(n))
    for n in range(3):
        assert read_again(night(tmp_path / "out", tmp_path / "lake" / f"dt={n}")) == {
            f"dt={n}-00000": -1
        }
    assert night(tmp_path / "out", tmp_path / "lake").todo == []
    assert sorted(answers(tmp_path / "out")) == [f"dt={n}-00000/x.png" for n in range(3)]


class TestOlderFolders:
    """What was answered before partitions were in names: nothing is answered twice."""

    @pytest.fixture
    def older(self, lake: Path, tmp_path: Path, monkeypatch) -> Path:
        """A folder that was answered from one day, as if `=` meant nothing."""
        with monkeypatch.context() as patch:
            patch.setattr("llava_batch.read.partitions._is_partition", lambda part: False)
            night(tmp_path / "out", lake / "dt=2026-11-01")
            night(tmp_path / "out", lake / "dt=2026-11-02" / "h=01")
        assert sorted(answers(tmp_path / "out")) == ["00000/0", "00000/1", "a/x", "h=01-00000/photos/y.png"]  # fmt: skip
        return tmp_path / "out"

    def test_the_same_command_has_nothing_to_do(self, older: Path, lake: Path) -> None:
        assert night(older, lake / "dt=2026-11-01").todo == []
        assert night(older, lake / "dt=2026-11-02" / "h=01").todo == []

    def test_a_run_over_the_whole_answers_only_what_is_new(self, older: Path, lake: Path) -> None:
        shards = night(older, lake / "dt=2026-11-01", lake / "dt=2026-11-02" / "h=00")
        assert [u.name for u in shards.todo] == ["dt=2026-11-02/h=00/a"]

    def test_loose_files_of_the_whole_go_on_under_their_names(self, lake, tmp_path, monkeypatch):
        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            patch.setattr("llava_batch.read.partitions._is_partition", lambda part: False)
            night(out, lake)
        before = answers(out)
        assert night(out, lake).todo == []
        assert night(out, lake / "dt=2026-11-02" / "h=01").todo == []
        assert answers(out) == before

    def test_another_days_folder_of_the_same_name_is_another(self, older: Path, lake: Path) -> None:
        put(lake / "dt=2026-11-03" / "h=01" / "photos" / "y.png", picture(9))
        work = night(older, lake / "dt=2026-11-03" / "h=01")
        assert read_again(work) == {"dt=2026-11-03/h=01-00000": -1}
