"""Inspect: what it says of shards, folders and damage, within its sample."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_batch.cli.inspect_inputs import inspect, told
from llava_batch.cli.jobs import app, exit_status
from llava_batch.errors import UsageError
from tests.answer_folder import jpeg


def write_tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_a_tar_tells_its_columns_sizes_and_broken_images(tmp_path: Path) -> None:
    side = json.dumps({"caption": "a cat", "width": 3}).encode()
    members = {"a.jpg": jpeg(size=(40, 30)), "a.json": side, "b.jpg": b"<html>", "b.txt": b"text",
               "c.jpg": jpeg(size=(80, 60))}  # fmt: skip
    (found,) = inspect([write_tar(tmp_path / "00000.tar", members)])
    assert (found.kind, found.units, found.rows) == ("tar", ("00000",), None)
    assert found.columns == {"caption": "str", "width": "int", "txt": "str"}
    assert found.sizes == ((40, 30), (80, 60))
    assert found.bad == {"image_unreadable": 1}
    assert found.examples[0][0] == "00000/b"


def test_a_parquet_file_tells_its_types_and_rows(tmp_path: Path) -> None:
    images = [jpeg(), jpeg()[:300], None]
    table = pa.table(
        {"image": pa.array(images, pa.binary()), "caption": ["a", "b", "c"], "n": [1, 2, 3]}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (found,) = inspect([str(tmp_path / "x.parquet")])
    assert found.rows == 3
    assert found.columns == {"image": "binary", "caption": "string", "n": "int64"}
    assert found.sizes == ((64, 48),)
    assert sum(found.bad.values()) == 2 and found.bad["image_missing"] == 1


def test_a_folder_of_several_kinds_gives_one_entry_for_each(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(jpeg())
    (tmp_path / "photos" / "1.txt").write_text("a caption")
    write_tar(tmp_path / "shard.tar", {"a.jpg": jpeg()})
    found = {f.kind: f for f in inspect([str(tmp_path)])}
    assert set(found) == {"files", "tar"}
    assert found["files"].rows == 3
    assert found["files"].columns == {"txt": "str"}


def test_no_more_is_decoded_than_was_asked_for(tmp_path: Path) -> None:
    for shard in range(20):
        write_tar(tmp_path / f"{shard:05d}.tar", {f"{i}.jpg": jpeg() for i in range(9)})
    for sample in (1, 5, 16, 40):
        (found,) = inspect([str(tmp_path)], sample)
        assert 1 <= found.sampled <= sample
        assert len(found.units) == 20


def test_a_damaged_shard_is_told_and_not_raised(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing of the kind")
    (tmp_path / "x.tar").write_bytes(b"\x01" * 2000)
    found = inspect([str(tmp_path / "x.parquet")]) + inspect([str(tmp_path / "x.tar")])
    assert [f.bad for f in found] == [{"shard_damaged": 1}] * 2
    assert all("shard_damaged" in "\n".join(told(f)) for f in found)


def test_the_command_prints_lines_and_refuses_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = write_tar(tmp_path / "00000.tar", {"a.jpg": jpeg(), "b.jpg": jpeg()})
    assert exit_status(app, ["inspect", tar], "llava-batch") == 0
    said = capsys.readouterr().out
    assert "tar: 1 unit (00000)" in said and "64x48" in said and "all can be decoded" in said
    assert exit_status(app, ["inspect", str(tmp_path / "nothing")], "llava-batch") == 2
    assert "no such file" in capsys.readouterr().err


def test_a_sample_of_nothing_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "00000.tar", {"a.jpg": jpeg()})
    with pytest.raises(UsageError, match="--sample 0"):
        inspect([tar], 0)


def test_a_table_of_paths_tells_which_images_can_be_fetched_in_a_sample(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(size=(40, 30)))
    paths = ["a.jpg", "none.jpg", "../b.jpg", "http://h/c.jpg?key=hidden", None]
    pq.write_table(pa.table({"image_path": paths}), tmp_path / "x.parquet")
    (found,) = inspect([str(tmp_path / "x.parquet")])
    assert found.sizes == ((40, 30),) and found.columns == {"image_path": "string"}
    assert found.bad == {"image_missing": 4} and found.sampled == 5
    assert "hidden" not in "\n".join(told(found))
