"""Datasets on disk: the rows that `datasets` itself reads, and what is wrong with one costs its own row."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from llava_batch.cli.inspect_inputs import inspect
from llava_batch.errors import UsageError
from llava_batch.read.find import find, find_units
from llava_batch.read.kinds import KINDS, read_rows, refuse_without_images
from llava_batch.read.row import Row
from tests.shards import outcome, picture, put, reading, rows_of

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(count: int, text: str = "t") -> pa.Table:
    cells = [{"bytes": picture(n), "path": None} for n in range(count)]
    texts = [f"{text}{n}" for n in range(count)]
    return pa.table({"image": pa.array(cells, IMAGE), "text": texts})


def put_stream(path: Path, data: pa.Table, *, rows_in_batch: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, data.schema) as writer:
        writer.write_table(data, rows_in_batch)
    return path


def put_dataset(folder: Path, *tables: pa.Table, **state: object) -> Path:
    """As `save_to_disk` lays it out."""
    for n, data in enumerate(tables):
        put_stream(folder / f"data-{n:05d}-of-{len(tables):05d}.arrow", data)
    put(folder / "state.json", json.dumps({"_data_files": [], **state}).encode())
    put(folder / "dataset_info.json", b"{}")
    return folder


def texts(path: Path) -> list[tuple[str, bytes, str]]:
    """Each row's unit, image and text."""
    found = find_units([str(path)])
    rows = ((u, r) for u in found for r in read_rows(u, reading(None, "text")))
    return [(unit.name, row.images[0], row.columns["text"]) for unit, row in rows]


DATASETS = """
import io, sys, datasets
from PIL import Image
pictures = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(7)]
features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
made = datasets.Dataset.from_dict({"image": pictures, "text": [f"t{n}" for n in range(7)]}, features)
made = made.shuffle(seed=3).filter(lambda row: row["text"] != "t4", keep_in_memory=True)
both = datasets.DatasetDict({"train": made, "test": made.select([2, 0])})
both.save_to_disk(sys.argv[1], num_shards={"train": 2, "test": 1})
made.to_parquet(sys.argv[1] + "-hub/data/train-00000-of-00001.parquet")
for name, split in datasets.load_from_disk(sys.argv[1]).items():
    split.map(lambda row: {"n": 1})  # leaves a cache file in the folder
    for row in split.cast_column("image", datasets.Image(decode=False)):
        print(name, row["text"], row["image"]["bytes"].hex())
"""


def test_a_dataset_that_datasets_saved_reads_as_datasets_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    command = [sys.executable, "-c", DATASETS, str(tmp_path / "saved")]
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PATH": "/usr/bin:/bin",
    }
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    theirs = [tuple(line.split()) for line in ran.stdout.splitlines() if line.count(" ") == 2]
    ours = texts(tmp_path / "saved")
    assert sorted({name for name, *_ in ours}) == [
        "test/data-00000-of-00001", "train/data-00000-of-00002", "train/data-00001-of-00002"]  # fmt: skip
    assert len(theirs) == 8
    assert sorted((n.partition("/")[0], text, image.hex()) for n, image, text in ours) == sorted(
        theirs
    )
    found = find([str(tmp_path / "saved")])
    assert set(found.left_out) == {".arrow"}  # the cache files
    assert found.skipped == {"side files": 5}
    hub = texts(tmp_path / "saved-hub")
    assert {name for name, *_ in hub} == {"data/train-00000-of-00001"}
    assert [(t, i.hex()) for _, i, t in hub] == [(t, i) for n, t, i in theirs if n == "train"]


def test_a_datasets_files_are_units_and_what_datasets_keeps_beside_them_is_not(tmp_path) -> None:
    put_dataset(tmp_path / "ds", table(3), table(2))
    put_stream(tmp_path / "ds" / "cache-1234.arrow", table(9))
    found = find([str(tmp_path)])
    assert [u.name for u in found.units] == ["ds/data-00000-of-00002", "ds/data-00001-of-00002"]
    assert (found.left_out, found.skipped) == ({".arrow": 1}, {"side files": 2})
    assert [KINDS["arrow"].count(unit) for unit in found.units] == [3, 2]


def test_arrow_answers_of_another_run_are_no_input(tmp_path: Path) -> None:
    put(tmp_path / "a.png", picture())
    (tmp_path / "out").mkdir()
    with pa.ipc.new_file(tmp_path / "out" / "00000.arrow", table(1).schema) as writer:
        writer.write_table(table(1))
    found = find([str(tmp_path)])
    assert [u.kind for u in found.units] == ["files"] and found.left_out == {".arrow": 1}


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_arrow_file_that_is_named_is_read(tmp_path: Path, make) -> None:
    with make(tmp_path / "a.arrow", table(9).schema) as writer:
        writer.write_table(table(9), 4)
    (unit,) = find_units([str(tmp_path / "a.arrow")])
    assert outcome(rows_of(unit)) == {str(n): "ok" for n in range(9)}
    (told,) = inspect([str(tmp_path / "a.arrow")])
    assert (told.kind, told.rows, told.columns["text"]) == ("arrow", 9, "string")


def test_a_dataset_whose_rows_are_chosen_by_indices_is_refused(tmp_path: Path) -> None:
    folder = put_dataset(tmp_path, table(3), _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(UsageError, match=r"chosen by indices\.arrow, which is not read"):
        refuse_without_images(find_units([str(folder)]), reading())


def rows(path: Path) -> list[Row]:
    (unit,) = find_units([str(path)])
    return [*read_rows(unit, reading(None, "text"))]


def test_a_stream_that_was_cut_says_so_wherever_it_was_cut(tmp_path: Path) -> None:
    # Between two batches pyarrow takes a cut stream for a whole one.
    data = put_stream(tmp_path / "whole.arrow", table(9)).read_bytes()
    for size in range(len(data)):
        found = rows(put(tmp_path / "cut.arrow", data[:size]))
        assert found[-1].error and found[-1].error[0] == "shard_damaged", size
        assert [row.columns["text"] for row in found[:-1]] == [
            f"t{n}" for n in range(len(found) - 1)
        ]


def test_bytes_that_are_flipped_never_end_the_process(tmp_path: Path) -> None:
    data = put_stream(tmp_path / "whole.arrow", table(9)).read_bytes()
    for place in range(0, len(data), 7):
        flipped = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        found = rows(put(tmp_path / "bad.arrow", flipped))
        assert all(bool(row.images) != bool(row.error) for row in found)
