"""Delta tables: rows, columns and deletions as deltalake itself reads them; what cannot be read is refused."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.read.find import find, find_units
from llava_batch.read.kinds import read_rows
from llava_batch.read.lake.table import AsOf
from tests.read.lake.tables import IMAGE_FIELDS, DeltaLog, field, images, mapped
from tests.read.lake.whole import as_read, ids, keys_by_unit, names
from tests.shards import outcome, picture, reading, rows_of

deltalake = pytest.importorskip("deltalake")


def whole(folder: Path, version: int | None = None) -> list[dict]:
    """The table's rows as deltalake's own scan has them, which tells no order."""
    return ordered(pa.table(deltalake.DeltaTable(folder, version=version).scan()).to_pylist())


def ordered(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=repr)


def test_rows_and_columns_are_those_that_deltalake_reads(tmp_path):
    times = pa.array([1_700_000_000_000_000, None, 3], pa.timestamp("us", "UTC"))
    rows = images(1, 2, 3, dt=["a", "b c/d", None], n=pa.array([1, 2, None], pa.int32()), at=times)
    deltalake.write_deltalake(tmp_path / "t", rows, partition_by=["dt", "n"])
    deltalake.write_deltalake(tmp_path / "t", images(4, dt=["a"], n=pa.array([1], pa.int32()),
                              at=times[:1]), mode="append")  # fmt: skip
    found = find([str(tmp_path / "t")])
    assert ordered(as_read(found, *rows.schema.names)) == whole(tmp_path / "t")
    assert [t.snapshot for t in found.tables] == [1]
    assert {u.of_table.partitions for u in found.units if u.of_table} == {("dt", "n")}
    assert all(u.name.startswith("t/dt=") and not u.name.endswith(".parquet") for u in found.units)


def test_deletion_vectors_in_the_log_and_in_files_are_applied_and_numbers_stay(tmp_path):
    log = DeltaLog(tmp_path / "t", IMAGE_FIELDS)
    log.write("a b.parquet", images(1, 2, 3, 4), row_group_size=2)
    log.write("c.parquet", images(5, 6))
    log.write("d.parquet", images(7))
    log.commit(
        *(
            log.add(p, encoded=p.replace(" ", "%20"))
            for p in ("a b.parquet", "c.parquet", "d.parquet")
        )
    )
    before = keys_by_unit(find([str(tmp_path / "t")]))
    log.commit(
        log.remove("a%20b.parquet"),
        log.add("a b.parquet", encoded="a%20b.parquet", vector=log.inline([1, 3])),
        log.remove("c.parquet"),
        log.add("c.parquet", vector=log.in_file([0])),
    )
    found = find([str(tmp_path / "t")])
    assert ordered(as_read(found, "name", "caption")) == whole(tmp_path / "t")
    assert names(found) == ["k1", "k3", "k6", "k7"]
    assert keys_by_unit(found) == {"t/a b": ["0", "2"], "t/c": ["1"], "t/d": ["0"]}
    assert keys_by_unit(found).keys() == before.keys()
    assert names(find([str(tmp_path / "t")], as_of=AsOf(snapshot=1))) == [
        f"k{n}" for n in range(1, 8)
    ]


@given(
    st.sets(st.integers(0, 199)),
    st.integers(1, 90),
    st.booleans(),
)
@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_rows_are_deleted_the_others_are_read_as_deltalake_reads_them(
    tmp_path_factory, gone, group, inline
):
    folder = tmp_path_factory.mktemp("t")
    log = DeltaLog(folder / "t", IMAGE_FIELDS)
    log.write("a.parquet", images(*range(200)), row_group_size=group)
    vector = (log.inline if inline else log.in_file)(sorted(gone)) if gone else None
    log.commit(log.add("a.parquet", vector=vector))
    found = find([str(folder / "t")])
    assert ordered(as_read(found, "name", "caption")) == whole(folder / "t")
    assert keys_by_unit(found) == {"t/a": [str(n) for n in range(200) if n not in gone]}


def test_columns_mapped_by_name_structs_lists_and_columns_that_came_later(tmp_path):
    struct = {"type": "struct", "fields": [mapped("bytes", "binary", 3, "s-3"),
                                           mapped("path", "string", 4, "s-4")]}  # fmt: skip
    inner = {"type": "struct", "fields": [mapped("a", "string", 8, "s-8")]}
    fields = [
        mapped("image", struct, 2, "c-2"),
        mapped("more", {"type": "array", "elementType": inner, "containsNull": True}, 5, "c-5"),
        mapped("day", "date", 6, "c-6"),
        mapped("n", "long", 7, "c-7"),
    ]
    log = DeltaLog(tmp_path / "t", fields, partitioned=["day"],
                   configuration={"delta.columnMapping.mode": "name"})  # fmt: skip
    old = pa.array([{"s-3": picture(n), "s-4": None} for n in range(4)])
    lists = pa.array([None, [], [{"s-8": "x"}, None], [{"s-8": None}]])
    new = {"c-5": lists, "c-2": old, "c-7": pa.array([5, None, 6, 7], pa.int32())}
    log.write("old.parquet", pa.table({"c-2": old}))
    log.write("new.parquet", pa.table(new))
    log.commit(
        log.add("new.parquet", partition={"c-6": "2026-11-01"}),
        log.add("old.parquet", partition={"c-6": None}),
    )
    found = find([str(tmp_path / "t")])
    read = [
        r | {"image": {"bytes": r["image"]}}
        for r in as_read(found, "more", "day", "n", image_column="image")
    ]
    expected = [r | {"image": {"bytes": r["image"]["bytes"]}} for r in whole(tmp_path / "t")]
    assert ordered(read) == ordered(expected)


def test_columns_mapped_by_id_and_files_outside_the_folder_are_refused_by_name(tmp_path):
    fields = [mapped("image", "binary", 1, "c-1")]
    DeltaLog(tmp_path / "t", fields, configuration={"delta.columnMapping.mode": "id"})
    with pytest.raises(UsageError, match=r"t: its columns are mapped by id, which is not read"):
        find_units([str(tmp_path / "t")])
    log = DeltaLog(tmp_path / "u", IMAGE_FIELDS)
    log.write("a.parquet", images(1))
    add = log.add("a.parquet")
    add["add"]["path"] = f"file://{tmp_path}/u/a.parquet"
    log.commit(add)
    with pytest.raises(UsageError, match=r"a\.parquet lies outside the table's folder"):
        find_units([str(tmp_path / "u")])


def test_a_file_without_any_of_the_columns_has_its_rows_still(tmp_path):
    log = DeltaLog(tmp_path / "t", [*IMAGE_FIELDS, field("old", "string")])
    log.write("a.parquet", pa.table({"old": ["x", "y", "z"]}))
    log.commit(log.add("a.parquet", vector=log.inline([1])))
    (unit,) = find_units([str(tmp_path / "t")])
    assert outcome(rows_of(unit)) == {"0": "image_missing", "2": "image_missing"}


def test_a_damaged_row_group_costs_its_own_rows_and_no_deleted_one_comes_back(tmp_path):
    log = DeltaLog(tmp_path / "t", IMAGE_FIELDS)
    how: Mapping = dict(row_group_size=2, compression="none", use_dictionary=False,
                        write_statistics=False, write_page_checksum=True)  # fmt: skip
    log.write("a.parquet", images(1, 2, 3, 4, 5, 6), **how)
    log.commit(log.add("a.parquet", vector=log.inline([2, 5])))
    path = tmp_path / "t/a.parquet"
    column = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 9] ^= 1
    path.write_bytes(data)
    (unit,) = find_units([str(tmp_path / "t")])
    assert outcome(rows_of(unit)) == {"0": "ok", "1": "ok", "3%row": "shard_damaged", "4": "ok"}
    (keyed,) = find([str(tmp_path / "t")], as_of=AsOf(key_column="name")).units
    assert [r["key"] for r in rows_of(keyed, reading(key_column="name"))] == [
        "k1",
        "k2",
        "a/3",
        "k5",
    ]


def test_with_a_key_column_ids_are_the_tables_and_the_keys(tmp_path):
    deltalake.write_deltalake(tmp_path / "night/photos", images(1, 2))
    deltalake.write_deltalake(tmp_path / "night/photos", images(3), mode="append")
    found = find([str(tmp_path / "night")], as_of=AsOf(key_column="name"))
    assert sorted(ids(found, key_column="name")) == ["photos/k1", "photos/k2", "photos/k3"]
    numbered = find([str(tmp_path / "night")])
    assert sorted(i.rpartition("/")[2] for i in ids(numbered)) == ["0", "0", "1"]


def test_a_table_below_a_folder_is_read_as_one_and_its_files_are_nobody_elses(tmp_path):
    deltalake.write_deltalake(tmp_path / "lake/a/photos", images(1, 2, 3))
    deltalake.DeltaTable(tmp_path / "lake/a/photos").delete("name = 'k2'")
    pq.write_table(images(9), tmp_path / "lake/plain.parquet")
    (tmp_path / "lake/a/photos/cover.png").write_bytes(picture(7))
    found = find([str(tmp_path / "lake")])
    assert sorted({u.kind for u in found.units}) == ["delta", "parquet"]
    assert sorted(names(found)) == ["k1", "k3", "k9"]
    both = find([str(tmp_path / "lake/a/photos"), str(tmp_path / "lake"), f"{tmp_path}/lake/a/*"])
    assert sorted(u.name for u in both.units) == sorted(u.name for u in found.units)
    with pytest.raises(
        UsageError, match="ids of the table photos and of unit photos/x could be the same"
    ):
        pq.write_table(images(8), tmp_path / "x.parquet")
        (tmp_path / "b/photos").mkdir(parents=True)
        (tmp_path / "x.parquet").rename(tmp_path / "b/photos/x.parquet")
        inputs = [str(tmp_path / "lake/a/photos"), str(tmp_path / "b")]
        find(inputs, as_of=AsOf(key_column="name"))


def test_a_commit_while_a_run_reads_changes_nothing(tmp_path):
    deltalake.write_deltalake(tmp_path / "t", images(1, 2))
    found = find([str(tmp_path / "t")])
    deltalake.write_deltalake(tmp_path / "t", images(3), mode="append")
    deltalake.DeltaTable(tmp_path / "t").delete("name = 'k1'")
    assert names(found) == ["k1", "k2"]


@pytest.mark.parametrize("number", [0, 2])
def test_snapshot_is_refused_where_there_is_not_exactly_one_table(tmp_path, number):
    pq.write_table(images(9), tmp_path / "plain.parquet")
    for i in range(number):
        deltalake.write_deltalake(tmp_path / f"t{i}", images(i))
    with pytest.raises(
        UsageError, match=r"--snapshot 0: there (are|is no) .*; give it with exactly one"
    ):
        find([str(tmp_path)], as_of=AsOf(snapshot=0))


def test_a_version_that_is_not_there_and_a_broken_log_are_refused_in_a_line(tmp_path):
    deltalake.write_deltalake(tmp_path / "t", images(1))
    with pytest.raises(
        UsageError, match=r"t: the delta table cannot be read .*--snapshot"
    ) as refused:
        find([str(tmp_path / "t")], as_of=AsOf(snapshot=9))
    assert "\n" not in str(refused.value)
    (tmp_path / "u/_delta_log").mkdir(parents=True)
    with pytest.raises(UsageError, match="u: the delta table cannot be read"):
        find_units([str(tmp_path / "u")])


def test_without_the_library_a_line_names_the_command(tmp_path, monkeypatch):
    deltalake.write_deltalake(tmp_path / "t", images(1))
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(UsageError, match=r"t: a delta table, .*pip install 'llava-batch\[lake\]'"):
        find_units([str(tmp_path / "t")])


def test_a_table_without_the_image_column_or_the_key_is_refused(tmp_path):
    from llava_batch.read.kinds import refuse_without_images

    deltalake.write_deltalake(tmp_path / "t", images(1))
    units = find_units([str(tmp_path / "t")])
    with pytest.raises(UsageError, match="--image-column nix"):
        refuse_without_images(units, reading(image_column="nix"))
    with pytest.raises(UsageError, match="--key-column nix"):
        refuse_without_images(units, reading(key_column="nix"))
    assert [row.key for row in read_rows(units[0], reading())] == ["0"]
