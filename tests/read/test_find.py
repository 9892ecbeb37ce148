"""Work units: found, sorted into kinds, and named by their own path and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_batch.errors import UsageError
from llava_batch.read import find as units_module
from llava_batch.read import loose_units
from llava_batch.read import parquet as parquet_module
from llava_batch.read.find import find_units
from llava_batch.storage import locate
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


def test_the_extensions_that_parquet_files_have_are_all_shards(tmp_path: Path) -> None:
    # Only .parquet was: the others were passed over without a word.
    lay(tmp_path, "a.parquet", "b.parq", "c.pq", "d.PQ", "e.TAR")
    assert [u.kind for u in find_units([str(tmp_path)])] == ["parquet"] * 4 + ["tar"]


def test_the_parquet_file_that_img2dataset_writes_beside_a_shard_is_a_side_file(tmp_path) -> None:
    lay(tmp_path, "00000.tar", "00000.parquet", "00000_stats.json")
    lay(tmp_path, "00001/000010000.jpg", "00001.parquet", "00001_stats.json")
    assert named(tmp_path) == ["00000", f"{tmp_path.name}-00000"]


def test_the_parquet_that_holds_the_images_itself_is_no_side_file(tmp_path: Path) -> None:
    lay(tmp_path, "00000.parquet", "00000_stats.json")
    assert named(tmp_path) == ["00000"]


def test_a_parquet_file_beside_a_folder_of_its_name_is_a_shard(tmp_path: Path) -> None:
    # It was taken for img2dataset's, and its images left out without a word.
    lay(tmp_path, "2026.parquet", "2026/01.jpg")
    assert named(tmp_path) == ["2026", f"{tmp_path.name}-00000"]


def test_a_parquet_file_and_a_tar_of_one_name_are_refused_with_both_paths(tmp_path: Path) -> None:
    lay(tmp_path, "a.tar", "a.parquet")
    assert f"{tmp_path}/a.parquet and {tmp_path}/a.tar" in refused(tmp_path)


# What is not read


def counts(*inputs: Path | str, output: Path | None = None) -> tuple[dict, dict]:
    """What was left out, and what was skipped."""
    found = units_module.find(
        map(str, inputs), output=None if output is None else locate(str(output))
    )
    return found.left_out, found.skipped


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path) -> None:
    # It was left out in silence.
    lay(tmp_path, "a.tar", "a.tar.idx", "b.zip", "c/d.CSV", "c/e.csv", "f.arrow", "README", "g.txt")
    lay(tmp_path, "Talk, 3.5 hours", "h.meta.json")
    left_out, skipped = counts(tmp_path)
    assert left_out == {".csv": 2, ".idx": 1, ".zip": 1, ".arrow": 1, "without extension": 1,
                        ".txt": 1, "of other names": 1, ".json": 1}  # fmt: skip
    assert next(iter(left_out)) == ".csv"
    assert skipped == {}


def test_side_files_are_not_counted_as_left_out(tmp_path: Path) -> None:
    lay(tmp_path, "00000.tar", "00000.parquet", "00000_stats.json", "00001.pq", "00001_stats.json")
    lay(tmp_path, "x/a.jpg", "x/a.json", "x/a.txt", "x/b.txt")
    assert counts(tmp_path) == ({".txt": 1}, {"side files": 5})


def test_names_that_begin_with_an_underscore_or_a_dot_are_skipped(tmp_path: Path) -> None:
    # Checkpoints of a log and half-written files of a Spark job were taken for shards.
    lay(tmp_path, "a.parquet", "_spark_metadata/10.checkpoint.parquet", "_spark_metadata/10.json")
    lay(tmp_path, "_temporary/0/b.parquet", "_SUCCESS", ".c.tar", "x/.ipynb_checkpoints/d.png")
    assert named(tmp_path) == ["a"]
    assert counts(tmp_path) == ({}, {"names that begin with _ or .": 5})


def test_a_pattern_matches_no_hidden_name_unless_it_says_so(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.parquet", "_metadata/2.parquet", "a/_3.parquet")
    assert named(f"{tmp_path}/*/*.parquet") == ["1"]
    assert named(f"{tmp_path}/_*/*.parquet") == ["2"]
    assert named(f"{tmp_path}/*/_*.parquet", f"{tmp_path}/a") == ["%5F3", "1"]
    hidden = {"names that begin with _ or .": 2}
    assert counts(f"{tmp_path}/**") == counts(f"{tmp_path}/**", tmp_path) == ({}, hidden)


def test_what_is_named_outright_is_read_whatever_its_name(tmp_path: Path) -> None:
    lay(tmp_path, "_hidden/_a.tar", "_hidden/_b/c.tar", "_hidden/d.tar")
    assert named(tmp_path / "_hidden/_a.tar", tmp_path / "_hidden") == ["%5Fa", "d"]


def test_a_folder_that_is_there_and_empty_gives_nothing(tmp_path: Path) -> None:
    # It was refused: a partition without a file yet stopped the night's run.
    empty = tmp_path / "dt=2026-11-24"
    empty.mkdir()
    assert named(empty) == []
    assert named(f"{tmp_path}/dt=*") == []
    lay(empty, "_SUCCESS")
    assert named(empty) == []


def test_a_folder_of_files_none_of_which_is_read_is_refused_by_their_kinds(tmp_path: Path) -> None:
    lay(tmp_path, "a.csv", "b.csv", "c.zip")
    assert "no image, tar or Parquet file there, but 2 .csv, 1 .zip" in refused(tmp_path)


def test_the_runs_own_output_is_never_its_input(tmp_path: Path) -> None:
    # The answers of the first run were the second one's shards.
    lay(tmp_path, "a.parquet", "out/a.parquet", "out/deep/b.parquet", "out/_run.json", "output.tar")
    (tmp_path / "link").symlink_to("out")
    lay(tmp_path, "x/y.tar")
    (tmp_path / "x/z.parquet").symlink_to("../out/a.parquet")
    for out in (tmp_path / "out", tmp_path / "link", tmp_path / "x/../out"):
        found = units_module.find([str(tmp_path)], output=locate(str(out)))
        assert [u.name for u in found.units] == ["a", "output", "x/y"]
        assert found.skipped == {"the run's own output": 3}
    found = units_module.find([f"{tmp_path}/*"], output=locate(str(tmp_path / "out")))
    assert [u.name for u in found.units] == ["y", "a", "output"]


@pytest.mark.parametrize("name", ["", "in", "in/a.tar", "link"])
def test_an_input_in_the_output_is_refused(tmp_path: Path, name: str) -> None:
    lay(tmp_path / "out", "in/a.tar")
    (tmp_path / "out/link").symlink_to("in")
    with pytest.raises(UsageError, match=r"lies in --output .*; give another --output"):
        units_module.find([str(tmp_path / "out" / name)], output=locate(str(tmp_path / "out")))


# Links


def test_a_link_back_up_is_not_walked_again(tmp_path: Path) -> None:
    # The walk went round and round, twice as wide at each turn: the driver never came back.
    lay(tmp_path, "in/a/1.tar", "in/b/2.tar")
    for folder in "ab":
        (tmp_path / "in" / folder / "up").symlink_to("..")
        (tmp_path / "in" / folder / "top").symlink_to(tmp_path)
    assert named(tmp_path / "in") == named(f"{tmp_path}/in/**") == ["a/1", "b/2"]
    assert named(f"{tmp_path}/in/*/*") == ["1", "2"]


def test_a_linked_folder_is_read_once_under_its_real_name(tmp_path: Path) -> None:
    # Each night's images were answered a second time as `latest`.
    lay(tmp_path, "in/2026-01-05/a.tar", "elsewhere/b.tar", "elsewhere/c.jpg")
    (tmp_path / "in/0-latest").symlink_to("2026-01-05")
    (tmp_path / "in/more").symlink_to("../elsewhere")
    assert named(tmp_path / "in") == ["2026-01-05/a", "more/b", "in-00000"]
    assert named(tmp_path / "in", tmp_path / "in/0-latest", tmp_path / "in/2026-01-05") == [
        "2026-01-05/a", "more/b", "in-00000",
    ]  # fmt: skip


def test_linked_files_are_rows_each(tmp_path: Path) -> None:
    # A hub's cache links every name to a blob; two names may share one.
    lay(tmp_path, "blobs/1")
    photos = lay(tmp_path / "photos", "c.jpg")
    for name in ("a.jpg", "b.jpg"):
        (photos / name).symlink_to("../blobs/1")
    (unit,) = find_units([str(photos)])
    assert unit.members == ("a.jpg", "b.jpg", "c.jpg")


def test_what_is_no_file_is_counted_as_left_out(tmp_path: Path) -> None:
    # Broken links and pipes were passed over in silence.
    lay(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to("gone.jpg")
    (tmp_path / "c.jpg").symlink_to("c.jpg")
    os.mkfifo(tmp_path / "d.jpg")
    expected: tuple[dict, dict] = ({"broken links": 2, "pipes and devices": 1}, {})
    assert counts(tmp_path) == counts(f"{tmp_path}/*") == expected


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + b"/\xff.png", "wb"):
        pass
    assert r"\xff.png' in it is not UTF-8" in refused(tmp_path / "in")


# Inputs that overlap


def test_a_file_that_two_inputs_name_is_read_once(tmp_path: Path) -> None:
    # It was answered twice, under two names.
    lay(tmp_path, "lake/day1/a.tar", "lake/day1/b.jpg", "lake/c.parquet", "lake/day1/d.csv")
    lake, day = tmp_path / "lake", tmp_path / "lake/day1"
    every = [lake, day, day / "a.tar", f"{lake}/*/*.tar", f"file://{lake}", day / "b.jpg"]
    for inputs in (every, every[::-1], [lake, day], [day, lake]):
        assert sorted(named(*inputs)) == ["c", "day1/a", "lake-00000"]
        assert counts(*inputs)[0] == {".csv": 1}


def test_a_file_given_by_itself_and_in_its_folder_has_one_name(tmp_path: Path) -> None:
    lay(tmp_path, "00000.tar")
    assert named(tmp_path / "00000.tar", tmp_path) == ["00000"]


def test_the_spelling_of_an_input_does_not_make_it_another(tmp_path: Path) -> None:
    lay(tmp_path, "photos/a.jpg", "photos/b.tar")
    (tmp_path / "link").symlink_to("photos")
    for inputs in (
        [tmp_path / "link", tmp_path / "photos"],
        [f"{tmp_path}/photos/", f"{tmp_path}/link"],
    ):
        assert named(*inputs) == ["b", "photos-00000"]


# Stores that are listed, not walked


@pytest.fixture
def bucket() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield "memory://lake"
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_a_store_of_objects_is_sorted_like_a_disk(bucket: str) -> None:
    fs = fsspec.filesystem("memory")
    names = ("a.tar", "day/b.pq", "day/c.jpg", "day/c.txt", "_x/d.tar", "_x/e.tar", "f.csv",
             "out/a.parquet", "out/_manifest/a.json", "outer.tar")  # fmt: skip
    for name in names:
        fs.pipe(f"/lake/{name}", b"x")
    found = units_module.find([bucket, f"{bucket}/day"], output=locate(f"{bucket}/out"))
    assert [u.name for u in found.units] == ["a", "day/b", "outer", "lake-00000"]
    assert found.left_out == {".csv": 1}
    assert found.skipped == {
        "the run's own output": 1, "names that begin with _ or .": 1, "side files": 1
    }  # fmt: skip
    with pytest.raises(UsageError, match="lies in --output"):
        units_module.find([f"{bucket}/out/a.parquet"], output=locate(f"{bucket}/out"))


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
    lay(tmp_path, "a.zip")
    assert "not a kind of file that is read; give" in refused(tmp_path / "a.zip")


def test_videos_are_refused_with_what_is_taken_of_them(tmp_path: Path) -> None:
    lay(tmp_path, "a.mp4", "b.MOV")
    for name in ("a.mp4", "b.MOV"):
        assert "is read (a video: give frames of it, as images)" in refused(tmp_path / name)
    assert "(videos are not taken, frames of them as images are)" in refused(tmp_path)


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


def test_units_whose_ids_could_be_the_same_are_refused(tmp_path: Path) -> None:
    # Row `b/c` of unit `a` and row `c` of unit `a/b` would both be `a/b/c`.
    lay(tmp_path, "a.tar", "a/b.tar")
    assert "could be the same" in refused(tmp_path)


def test_names_that_readers_of_tables_skip_are_not_given(tmp_path: Path) -> None:
    lay(tmp_path, "_hidden/_a.tar", ".b.tar", "_photos/c.png")
    names = named(tmp_path / "_hidden/_a.tar", tmp_path / ".b.tar", tmp_path / "_photos")
    assert names == ["%5Fa", "%2Eb", "%5Fphotos-00000"]


# Loose files


@pytest.fixture
def three_in_a_unit(monkeypatch) -> None:
    monkeypatch.setattr(loose_units, "FILES_PER_UNIT", 3)


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


def test_a_web_host_that_does_not_answer_is_no_missing_file() -> None:
    # `no such file or folder; check the path`, of a URI.
    said = refused("http://127.0.0.1:1/x.tar")
    assert "or its host does not answer" in said and "--allow-http" in said
