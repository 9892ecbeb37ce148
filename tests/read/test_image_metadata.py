"""Hugging Face's image folders: what `metadata.*` says of an image is its columns, as `datasets` reads it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from llava_batch.read import loose_units
from llava_batch.read.columns import keep_schema
from llava_batch.read.find import Inputs, find
from llava_batch.read.kinds import first_row, read_rows
from llava_batch.read.row import Row
from tests.shards import picture, put, reading, rows_of

Write = Callable[[Path, list[dict[str, Any]]], object]


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> None:
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)


def as_jsonl(folder: Path, rows: list[dict[str, Any]]) -> None:
    put(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> None:
    pd.DataFrame(rows).to_parquet(folder / "metadata.parquet")


any_format = pytest.mark.parametrize("write", [as_csv, as_jsonl, as_parquet])


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        put(folder / name, picture(number))
    return folder


def rows(found: Inputs, *columns: str) -> dict[str, Row]:
    return {r.key: r for u in found.units for r in read_rows(u, reading(None, *columns))}


def texts(folder: Path) -> dict[str, str | None]:
    return {key: row.columns.get("text") for key, row in rows(find([str(folder)]), "text").items()}


DATASETS = """
import sys, datasets
made = datasets.load_dataset("imagefolder", data_dir=sys.argv[1], split="train")
for row in made.cast_column("image", datasets.Image(decode=False)):
    print(row["image"]["path"], repr(row["text"]), sep="\\t")
"""


@any_format
def test_images_have_the_columns_that_datasets_gives_them(tmp_path: Path, write: Write) -> None:
    pytest.importorskip("datasets")
    folder = images(tmp_path / "in", "a.png", "deep/b.png", "deep/er/c.png", "d ü.png")
    write(folder, [
        {"file_name": "d ü.png", "text": 'said "x",\nand more'},
        {"file_name": "deep/b.png", "text": "b"},
        {"file_name": "a.png", "text": "a"},
        {"file_name": "deep/er/c.png", "text": "c"},
    ])  # fmt: skip
    command = [sys.executable, "-c", DATASETS, str(folder)]
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PATH": "/usr/bin:/bin",
    }
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    theirs = dict(line.split("\t") for line in ran.stdout.splitlines() if "\t" in line)
    assert {str(folder / key): repr(text) for key, text in texts(folder).items()} == theirs
    found = find([str(folder)])
    assert (found.left_out, found.skipped) == ({}, {"side files": 1})


@any_format
def test_an_image_without_a_row_stands_and_a_row_without_an_image_is_counted(
    tmp_path, write
) -> None:
    folder = images(tmp_path / "in", "a.png", "b.png")
    write(folder, [
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "a.png", "text": "first"},
        {"file_name": "../in/b.png", "text": "b"},
        {"file_name": "../../etc/passwd", "text": "x"},
        {"file_name": "a.png", "text": "second"},
    ])  # fmt: skip
    assert texts(folder) == {"a.png": "first", "b.png": "b"}
    name = next(path.name for path in folder.glob("metadata*"))
    assert find([str(folder)]).left_out == {
        f"rows of {name} whose file is not there": 2,
        f"rows of {name} about an image that has one": 1,
    }


def test_the_nearest_files_row_counts(tmp_path: Path) -> None:
    folder = images(tmp_path / "in", "sub/a.png", "sub/b.png")
    as_jsonl(folder, [{"file_name": f"sub/{n}.png", "text": "far"} for n in "ab"])
    as_csv(folder / "sub", [{"file_name": "a.png", "text": "near"}])
    assert texts(folder) == {"sub/a.png": "near", "sub/b.png": "far"}


def test_lines_that_do_not_read_cost_the_columns_of_their_own_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "in", "a.png", "b.png")
    lines = [b'{"file_name": "b.png", "text": "b"}', b'{"file_name": "a.png", "text": ', b"[]"]
    put(folder / "metadata.jsonl", b"\n".join(lines))
    assert texts(folder) == {"a.png": None, "b.png": "b"}
    assert find([str(folder)]).left_out == {"rows of metadata.jsonl that do not read": 2}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_a_file_of_that_name_without_file_names_is_what_it_would_be(
    tmp_path: Path, name: str
) -> None:
    folder = images(tmp_path / "in", "a.png")
    put(folder / "metadata.csv", b"a,b\n1,2\n")
    put(folder / "metadata.jsonl", b'{"a": 1}\n')
    pd.DataFrame({"image": [picture()]}).to_parquet(folder / "metadata.parquet")
    found = find([str(folder)])
    assert {u.name for u in found.units} == {"metadata", "in-00000"}
    assert found.left_out == {".csv": 1, ".jsonl": 1}


def test_metadata_that_is_an_input_itself_is_that_and_nothing_else(tmp_path: Path) -> None:
    folder = images(tmp_path / "in", "a.png")
    as_csv(folder, [{"file_name": "a.png", "text": "x"}])
    found = find([str(folder), str(folder / "metadata.csv")])
    assert {(u.kind, u.metadata) for u in found.units} == {("files", ()), ("csv", ())}
    assert not found.left_out


def test_metadata_without_images_around_is_a_table_like_any(tmp_path: Path) -> None:
    images(tmp_path / "in", "images/a.png")
    (tmp_path / "in" / "text").mkdir()
    as_csv(tmp_path / "in" / "text", [{"file_name": "../images/a.png", "text": "x"}])
    assert find([str(tmp_path / "in")]).left_out == {".csv": 1}


def test_columns_are_kept_and_each_unit_holds_only_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loose_units, "FILES_PER_UNIT", 2)
    folder = images(tmp_path / "in", *(f"{n}.png" for n in range(5)), "other/x.png")
    as_jsonl(folder / "other", [{"file_name": "x.png", "text": "other"}])
    as_parquet(folder, [{"file_name": f"{n}.png", "text": f"t{n}", "n": n} for n in range(5)])
    units = find([str(folder)]).units
    assert [len(unit.metadata) for unit in units] == [1, 1, 2]
    keep = keep_schema(["text", "n:int64"], units[0], first_row(units[0], reading(None, "text")))
    kept = [(r["keep.text"], r["keep.n"]) for u in units for r in rows_of(u, reading(keep))]
    assert kept == [*((f"t{n}", n) for n in range(5)), ("other", None)]
    assert keep.field("text").type == pa.string()
