"""Iceberg tables: rows, columns and deletes as pyiceberg itself reads them; what cannot be read is refused."""

from pathlib import Path

import pyarrow as pa
import pytest

from llava_batch.errors import UsageError
from llava_batch.read.find import find
from llava_batch.read.lake.table import AsOf
from tests.read.lake.tables import delete_positions, folder_of, iceberg_catalog, images
from tests.read.lake.whole import as_read, keys_by_unit, names

pytest.importorskip("pyiceberg")


def ours(table, **as_of):
    return find([str(folder_of(table))], as_of=AsOf(**as_of))


def made(folder: Path, *parts: pa.Table, name: str = "ns.photos"):
    catalog = iceberg_catalog(folder)
    table = catalog.create_table(name, schema=parts[0].schema)
    for part in parts:
        table.append(part)
    return table


def test_rows_and_columns_are_those_that_pyiceberg_reads(tmp_path):
    table = made(tmp_path, images(1, 2, n=[1, 2]), images(3, n=[3]))
    found = ours(table)
    whole = table.scan().to_arrow().to_pylist()
    assert sorted(as_read(found, "name", "caption", "n"), key=str) == sorted(whole, key=str)
    assert [t.snapshot for t in found.tables] == [table.current_snapshot().snapshot_id]
    assert {u.name.partition("/")[0] for u in found.units} == {"photos"}


def test_position_deletes_are_never_read_and_the_others_keep_their_numbers(tmp_path):
    table = made(tmp_path, images(1, 2, 3, 4), images(5, 6))
    files = {t.file.record_count: t.file.file_path for t in table.scan().plan_files()}
    first, second = files[4], files[2]
    before = keys_by_unit(ours(table))
    table = delete_positions(table, {first: [0, 2], second: [1]})
    table = delete_positions(table, {first: [0]})
    found = ours(table)
    whole = table.scan().to_arrow().to_pylist()
    assert sorted(as_read(found, "name", "caption"), key=str) == sorted(whole, key=str)
    after = keys_by_unit(found)
    assert after.keys() == before.keys()
    assert sum(map(len, after.values())) == 3
    assert all(set(after[unit]) < set(before[unit]) for unit in after)


def test_deletion_vectors_in_puffin_files_are_applied(tmp_path):
    table = made(tmp_path, images(1, 2, 3, 4))
    (task,) = table.scan().plan_files()
    table = delete_positions(table, {task.file.file_path: [1, 2]}, puffin=True)
    found = ours(table)
    assert names(found) == ["k1", "k4"]
    assert as_read(found, "name", "caption") == table.scan().to_arrow().to_pylist()


def test_equality_deletes_are_refused_by_name(tmp_path):
    table = made(tmp_path, images(1, 2))
    (task,) = table.scan().plan_files()
    table = delete_positions(table, {task.file.file_path: [0]}, equality=True)
    with pytest.raises(UsageError, match=r"deletes-.*\.parquet holds equality deletes.*compact"):
        ours(table)


def test_one_snapshot_is_read_whatever_is_committed_later(tmp_path):
    table = made(tmp_path, images(1, 2))
    first = table.current_snapshot().snapshot_id
    found = ours(table)
    table.append(images(3))
    assert names(found) == ["k1", "k2"]
    assert len(names(ours(table))) == 3
    assert names(ours(table, snapshot=first)) == ["k1", "k2"]
    with pytest.raises(UsageError, match=f"--snapshot 7: .*photos has no such snapshot.*{first}"):
        ours(table, snapshot=7)


def test_a_column_that_came_later_is_null_in_older_files_and_a_renamed_one_is_found(tmp_path):
    table = made(tmp_path, images(1))
    with table.update_schema() as update:
        from pyiceberg.types import LongType

        update.add_column("score", LongType())
        update.rename_column("caption", "alt")
    later = images(2, score=[5]).rename_columns(["name", "image", "alt", "score"])
    table.append(later)
    rows = as_read(ours(table), "name", "alt", "score")
    assert sorted(rows, key=str) == sorted(table.scan().to_arrow().to_pylist(), key=str)
    assert {r["score"] for r in rows} == {None, 5}


def test_partitions_and_times_with_a_zone_are_columns_as_the_table_has_them(tmp_path):
    from pyiceberg.transforms import IdentityTransform

    times = pa.array([1_700_000_000_000_000, 2], pa.timestamp("us", "UTC"))
    rows = images(1, 2, dt=["a", "b c"], at=times)
    catalog = iceberg_catalog(tmp_path)
    table = catalog.create_table("ns.photos", schema=rows.schema)
    with table.update_spec() as update:
        update.add_field("dt", IdentityTransform(), "dt")
    table.append(rows)
    found = ours(table)
    read = as_read(found, "name", "caption", "dt", "at")
    assert sorted(read, key=str) == sorted(table.scan().to_arrow().to_pylist(), key=str)
    assert {u.of_table.partitions for u in found.units} == {("dt",)}


def test_structs_of_bytes_are_images(tmp_path):
    pictures = images(1, 2)["image"].to_pylist()
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": data, "path": None} for data in pictures], struct)
    table = made(tmp_path, pa.table({"image": cells, "n": [1, 2]}))
    assert [r["image"] for r in as_read(ours(table), "n")] == pictures


def test_a_table_is_found_by_its_catalogs_name(tmp_path, monkeypatch):
    from pyiceberg.utils.config import Config

    table = made(tmp_path, images(1, 2))
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__TYPE", "sql")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # read when it is imported
    by_name, by_folder = find(["iceberg:lake.ns.photos"]), ours(table)
    assert [u.name for u in by_name.units] == [u.name for u in by_folder.units]
    assert [u.input for u in by_name.units] == [u.input for u in by_folder.units]
    assert names(by_name) == ["k1", "k2"]
    with pytest.raises(
        UsageError, match=r"iceberg:lake\.ns\.none: the iceberg table cannot be read"
    ):
        find(["iceberg:lake.ns.none"])
    with pytest.raises(UsageError, match="not of the form iceberg:CATALOG"):
        find(["iceberg:photos"])


def test_where_two_metadata_files_could_be_the_newest_the_catalog_is_asked_for(tmp_path):
    table = made(tmp_path, images(1))
    metadata = folder_of(table) / "metadata"
    newest = max(metadata.glob("*.metadata.json"))
    (metadata / f"{newest.name[:5]}-another.metadata.json").write_bytes(newest.read_bytes())
    with pytest.raises(
        UsageError, match=r"2 of its metadata files could be the newest.*iceberg:CATALOG"
    ):
        ours(table)
    (metadata / "version-hint.text").write_text(newest.name.removesuffix(".metadata.json"))
    assert names(ours(table)) == ["k1"]


def test_a_table_without_a_snapshot_has_nothing_to_read(tmp_path):
    table = iceberg_catalog(tmp_path).create_table("ns.photos", schema=images(1).schema)
    found = ours(table)
    assert found.units == [] and [t.snapshot for t in found.tables] == [None]
