"""Inspect: what it says of shards, folders and damage, within its sample."""

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_batch.cli import look
from llava_batch.cli.inspect_inputs import inspect, told
from llava_batch.cli.jobs import app, exit_status
from llava_batch.errors import RowError, UsageError
from llava_batch.prepare.pixels import BadImage
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


def test_what_decoders_write_to_stderr_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Of one broken TIFF libtiff wrote three hundred lines there.
    def noisy(data: bytes, max_pixels: int) -> object:
        os.write(2, b"TIFFFetchNormalTag: custom tag\n")
        raise BadImage(RowError.IMAGE_UNREADABLE, "no image\n at all")

    monkeypatch.setattr("llava_batch.cli.inspect_inputs.decode", noisy)
    (found,) = inspect([write_tar(tmp_path / "00000.tar", {"a.jpg": jpeg()})])
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"
    assert found.examples[0][1] == "image_unreadable: no image at all"


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


def test_rows_are_counted_once_however_a_file_is_split(tmp_path: Path) -> None:
    # A Parquet file that was split by rows counted as its last unit alone.
    rows = {"image": pa.array([b"x" * 30] * 25_000, pa.binary())}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet", compression="none", use_dictionary=False)
    (tmp_path / "y.csv").write_text("path\n" + "x.png\n" * 12_345)
    assert [unit.rows for unit in inspect([str(tmp_path / "x.parquet")])] == [25_000]
    assert [unit.rows for unit in inspect([str(tmp_path / "y.csv")])] == [12_345]


def test_partitions_are_told_by_key(tmp_path: Path) -> None:
    table = pa.table({"image": [jpeg()], "n": [1]})
    for day in ("2026-11-01", "2026-11-02", "2026-11-03", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"dt={day}" / "h=0").mkdir(parents=True)
        pq.write_table(table, tmp_path / f"dt={day}" / "h=0" / "a.parquet")
    (found,) = inspect([str(tmp_path)])
    assert found.partitions["dt"] == (None, "2026-11-01", "2026-11-02", "2026-11-03")
    assert found.columns == {"image": "binary", "n": "int64", "dt": "string", "h": "string"}
    assert "  partitions: dt (4: null … 2026-11-03), h (0)" in told(found)


def test_what_is_wrong_with_several_rows_is_said_once(tmp_path: Path) -> None:
    # The columns of a table without images stood there once for each of five rows.
    table = pa.table({f"column_{n}": list(range(9)) for n in range(18)})
    pq.write_table(table, tmp_path / "x.parquet")
    (found,) = inspect([str(tmp_path / "x.parquet")])
    text = "\n".join(told(found))
    assert text.count("no column holds images") == 1
    assert "x/0: image_missing" in text and "(and 8 more)" in text


def test_images_that_a_table_names_are_fetched_in_the_sample(tmp_path: Path) -> None:
    # The first row of such a table ended the command with an IndexError.
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").write_bytes(b"<html>")
    lines = ["path,t", "a.jpg,1", "b.jpg,2", "gone.jpg,3", "https://example.invalid/x.jpg,4", ""]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    (found,) = inspect([str(tmp_path / "x.csv")])
    assert (found.kind, found.rows, found.sampled, found.fetched) == ("csv", 4, 4, 4)
    assert (found.sizes, found.bad) == (((64, 48),), {"image_missing": 2, "image_unreadable": 1})
    assert found.columns == {"path": "string", "t": "string"}
    text = "\n".join(told(found))
    assert "sample of 4 (4 by their paths or URIs): 2 image_missing, 1 image_unreadable" in text
    assert "--allow-http" in text


def test_lines_are_broken_between_words_at_the_terminal_s_edge(monkeypatch) -> None:
    # The terminal broke `caption (stri` / `ng)`.
    line = "  columns: " + ", ".join(f"column_{n} (string)" for n in range(9))
    assert look._wrapped([line]) == [line], "in a pipe a line is a line"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    wrapped = look._wrapped([line])
    assert max(map(len, wrapped)) <= 40
    assert [part for part in wrapped if not part.startswith("  ")] == []
    assert " ".join(part.strip() for part in wrapped) == line.strip()
