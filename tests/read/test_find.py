"""Work units: found, sorted into kinds, and named by their own path and nothing else."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_batch.errors import UsageError
from llava_batch.read import find as units_module
from llava_batch.read import parquet as parquet_module
from llava_batch.read.find import find_units
from llava_batch.unit import Unit


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def named(*inputs: Path | str, remembered=lambda base: {}) -> list[str]:
    return [unit.name for unit in find_units(map(str, inputs), remembered)]


def refused(*inputs: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        find_units(map(str, inputs))
    return str(error.value)


def test_a_shard_given_by_itself_is_named_by_its_stem(tmp_path: Path) -> None:
    lay(tmp_path, "a/00000.tar", "b/00001.parquet")
    assert named(tmp_path / "a/00000.tar", tmp_path / "b/00001.parquet") == ["00000", "00001"]


def test_a_shard_in_a_folder_is_named_by_its_path_below_it(tmp_path: Path) -> None:
    lay(tmp_path, "00000.tar", "deep/er/00000.tar", "with.dots.tar")
    assert named(tmp_path) == ["00000", "deep/er/00000", "with.dots"]


def test_a_name_stays_whatever_is_added_beside_it(tmp_path: Path) -> None:
    lay(tmp_path, "b.tar")
    assert named(tmp_path) == ["b"]
    lay(tmp_path, "a.tar", "c/b.tar", "0.parquet")
    assert "b" in named(tmp_path)


def test_units_come_in_the_order_given_and_by_path_within_each(tmp_path: Path) -> None:
    lay(tmp_path, "x/2.tar", "x/1.tar", "y/0.tar")
    assert named(tmp_path / "y", tmp_path / "x") == ["0", "1", "2"]
    assert named(tmp_path / "x", tmp_path / "y") == ["1", "2", "0"]


def test_kinds_are_mixed_in_one_input(tmp_path: Path) -> None:
    lay(tmp_path, "a.tar", "b.parquet", "c.JPG", "sub/d.webp")
    found = {u.name: u for u in find_units([str(tmp_path)])}
    base = tmp_path.name
    assert {n: u.kind for n, u in found.items()} == {
        "a": "tar",
        "b": "parquet",
        f"{base}-00000": "files",
    }
    assert found[f"{base}-00000"].members == ("c.JPG", "sub/d.webp")


def test_side_files_of_shards_are_left_out(tmp_path: Path) -> None:
    lay(tmp_path, "00000.tar", "00000.parquet", "00000_stats.json", "notes.txt", "00000.tar.idx")
    assert named(tmp_path) == ["00000"]


def test_the_parquet_that_holds_the_images_itself_is_no_side_file(tmp_path: Path) -> None:
    lay(tmp_path, "00000.parquet", "00000_stats.json")
    assert named(tmp_path) == ["00000"]


# Patterns


def test_braces_and_wildcards_are_expanded(tmp_path: Path) -> None:
    lay(tmp_path, "00000.tar", "00001.tar", "00002.tar", "x/00003.tar")
    assert named(f"{tmp_path}/{{00000..00001}}.tar") == ["00000", "00001"]
    assert named(f"{tmp_path}/0000[02].tar") == ["00000", "00002"]
    assert named(f"{tmp_path}/*.tar") == ["00000", "00001", "00002"]


def test_a_file_whose_name_has_braces_or_brackets_is_itself(tmp_path: Path) -> None:
    lay(tmp_path, "a[1].tar", "{b}.tar")
    assert named(f"{tmp_path}/a[1].tar", f"{tmp_path}/{{b}}.tar") == ["a[1]", "{b}"]


def test_a_gap_in_a_range_is_told_and_not_skipped(tmp_path: Path) -> None:
    lay(tmp_path, "00000.tar", "00002.tar")
    assert "00001.tar: no such file or folder" in refused(f"{tmp_path}/{{00000..00002}}.tar")


def test_a_file_uri_is_the_file(tmp_path: Path) -> None:
    lay(tmp_path, "00000.tar")
    assert named(f"file://{tmp_path}/00000.tar") == ["00000"]


# Refusals


@pytest.mark.parametrize("name", ["nowhere", "none/*.tar", "no_{1..2}.tar"])
def test_an_input_that_matches_nothing_is_refused(tmp_path: Path, name: str) -> None:
    message = refused(tmp_path / name)
    assert message.startswith(f"--input {tmp_path}") and "check the path" in message


def test_a_folder_without_anything_to_read_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "notes.txt")
    assert "no image, tar or Parquet file there" in refused(tmp_path)


def test_a_kind_of_file_that_is_not_read_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "a.csv")
    assert "not a kind of file that is read" in refused(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_compressed_tars_are_refused_rather_than_left_out(tmp_path: Path, name: str) -> None:
    lay(tmp_path, name, "b.tar")
    for path in (tmp_path, tmp_path / name):
        assert "compressed tars are not read" in refused(path)


def test_two_units_of_one_name_are_refused_with_both_paths(tmp_path: Path) -> None:
    lay(tmp_path, "a/00000.tar", "b/00000.tar")
    message = refused(tmp_path / "a", tmp_path / "b")
    assert f"{tmp_path}/a/00000.tar and {tmp_path}/b/00000.tar" in message
    assert named(tmp_path) == ["a/00000", "b/00000"]


def test_one_shard_given_twice_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "00000.tar")
    assert "given twice" in refused(tmp_path / "00000.tar", tmp_path)


def test_units_whose_ids_could_be_the_same_are_refused(tmp_path: Path) -> None:
    # Row `b/c` of unit `a` and row `c` of unit `a/b` would both be `a/b/c`.
    lay(tmp_path, "a.tar", "a/b.tar")
    assert "could be the same" in refused(tmp_path)


def test_names_that_readers_of_tables_skip_are_not_given(tmp_path: Path) -> None:
    lay(tmp_path, "_hidden/_a.tar", ".b.tar")
    names = named(tmp_path)
    assert names and not any(part[:1] in "_." for name in names for part in name.split("/"))


# Loose files


@pytest.fixture
def three_in_a_unit(monkeypatch) -> None:
    monkeypatch.setattr(units_module, "FILES_PER_UNIT", 3)


def loose(folder: Path, remembered=None) -> dict[str, Unit]:
    found = find_units([str(folder)], lambda base: remembered or {})
    return {u.name: u for u in found}


def test_a_folder_of_files_becomes_units_of_a_bounded_number(tmp_path, three_in_a_unit) -> None:
    photos = lay(tmp_path / "photos", *(f"{i}.png" for i in range(7)))
    assert {n: u.members for n, u in loose(photos).items()} == {
        "photos-00000": ("0.png", "1.png", "2.png"),
        "photos-00001": ("3.png", "4.png", "5.png"),
        "photos-00002": ("6.png",),
    }


def test_files_that_appear_later_make_new_units(tmp_path: Path, three_in_a_unit) -> None:
    photos = lay(tmp_path / "photos", "b.png", "d.png")
    before = loose(photos)
    members = {n: u.members for n, u in before.items()}
    lay(photos, "a.png", "c.png")
    after = loose(photos, members)
    assert after["photos-00000"] == before["photos-00000"]
    assert after["photos-00001"].members == ("a.png", "c.png")


def test_a_file_that_is_gone_changes_its_unit_and_no_other(tmp_path, three_in_a_unit) -> None:
    photos = lay(tmp_path / "photos", *(f"{i}.png" for i in range(6)))
    before = loose(photos)
    members = {n: u.members for n, u in before.items()}
    (photos / "1.png").unlink()
    after = loose(photos, members)
    assert after["photos-00000"].members == members["photos-00000"]
    assert after["photos-00000"].source != before["photos-00000"].source
    assert after["photos-00001"] == before["photos-00001"]


def test_image_files_given_one_by_one_are_rows_of_their_folder(tmp_path: Path) -> None:
    photos = lay(tmp_path / "photos", "a.png", "b.png", "c.png")
    (unit,) = find_units([str(photos / "a.png"), str(photos / "c.png")])
    assert (unit.name, unit.members) == ("photos-00000", ("a.png", "c.png"))


# Large Parquet files


def groups(path: Path, count: int) -> Path:
    table = pa.table({"key": [str(i) for i in range(10 * count)]})
    pq.write_table(table, path, row_group_size=10)
    return path


def test_a_large_parquet_file_is_split_into_runs_of_row_groups(tmp_path, monkeypatch) -> None:
    path = groups(tmp_path / "00000.parquet", 7)
    monkeypatch.setattr(parquet_module, "SPLIT_BYTES", path.stat().st_size // 3)
    found = find_units([str(path)])
    assert len(found) > 1
    assert [u.name for u in found] == [f"00000-{i:05d}" for i in range(len(found))]
    covered = [g for u in found for g in range(*u.row_groups)]  # type: ignore[misc]
    assert covered == list(range(7))


def test_a_small_parquet_file_is_one_unit(tmp_path: Path) -> None:
    (unit,) = find_units([str(groups(tmp_path / "00000.parquet", 7))])
    assert (unit.name, unit.row_groups) == ("00000", None)


# Changed inputs


def test_a_changed_file_is_another_source_and_an_untouched_one_is_not(tmp_path: Path) -> None:
    path = lay(tmp_path, "00000.tar") / "00000.tar"
    (before,) = find_units([str(path)])
    assert find_units([str(path)]) == [before]
    path.write_bytes(b"longer than it was")
    os.utime(path, ns=(1, 1))
    (after,) = find_units([str(path)])
    assert after.source != before.source and after.name == before.name


def test_a_units_input_is_named_without_credentials(tmp_path: Path) -> None:
    (unit,) = find_units([str(lay(tmp_path, "00000.tar") / "00000.tar")])
    assert unit.input == f"local:{tmp_path}/00000.tar"
    assert "fs=" not in repr(unit)
