"""The kinds of input: one file and one line of the registry each, and nothing heavy loaded."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from ray import cloudpickle

from llava_batch.cli.inspect_inputs import inspect
from llava_batch.read import kinds, source, tar_members
from llava_batch.read.columns import keep_schema
from llava_batch.read.find import find_units
from llava_batch.read.kinds import KINDS, first_row
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Row
from llava_batch.read.source import UnitSource, read_blocks
from llava_batch.unit import Unit
from tests.shards import picture, put, put_parquet, reading, rows_of, tar_bytes, units_of


class Lines(Kind):
    """A file of lines, each the path of an image."""

    extensions = frozenset({".lines"})

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        for line in Path(unit.path).read_text().split():
            yield Row(key=line, images=(Path(line).read_bytes(),), columns={"where": line})

    def columns(self, unit: Unit) -> pa.Schema:
        return pa.schema([("where", pa.string())])

    def count(self, unit: Unit) -> int:
        return len(Path(unit.path).read_text().split())


def test_a_new_kind_is_a_class_and_a_line_of_the_registry(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "lines", Lines())
    images = [put(tmp_path / "images" / f"{n}.png", picture(n)) for n in range(3)]
    path = put(tmp_path / "in" / "a.lines", "\n".join(map(str, images)).encode())
    (unit,) = find_units([str(tmp_path / "in")])
    assert (unit.name, unit.kind, unit.path) == ("a", "lines", str(path))
    keep = keep_schema(["where"], unit, first_row(unit, reading()))
    assert [r["keep.where"] for r in rows_of(unit, reading(keep))] == [*map(str, images)]
    (found,) = inspect([str(path)])
    assert (found.kind, found.rows, found.sampled) == ("lines", 3, 3)
    assert found.columns == {"where": "string"}


def shards(folder: Path) -> list[Path]:
    """A tar, a Parquet file and a folder of files."""
    put(folder / "files" / "a.png", picture())
    put(folder / "files" / "a.txt", b"a caption")
    tar = put(folder / "b.tar", tar_bytes({"a.png": picture(), "a.json": b'{"caption": "x"}'}))
    return [tar, put_parquet(folder / "c.parquet", {"image": [picture()]}), folder / "files"]


def loaded_by(code: str, *arguments: Path) -> set[str]:
    """The heavy packages that a fresh process has loaded once it ran `code`."""
    heavy = "{'torch', 'transformers', 'ray'} & set(sys.modules)"
    whole = f"import sys, json\n{code}\nprint(json.dumps([*{heavy}]))"
    command = [sys.executable, "-c", whole, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize("which", range(3), ids=["tar", "parquet", "folder"])
def test_inspect_loads_neither_torch_nor_transformers_nor_ray(tmp_path, which):
    code = (
        "from llava_batch.cli.jobs import app\napp(['inspect', sys.argv[1]], standalone_mode=False)"
    )
    assert loaded_by(code, shards(tmp_path)[which]) == set()


@pytest.mark.parametrize("which", range(3), ids=["tar", "parquet", "folder"])
def test_a_reader_loads_neither_torch_nor_transformers(tmp_path, which):
    # A read task as a worker gets it; what loads them costs every reader seconds and 400 MB.
    units = units_of(shards(tmp_path)[which])
    (task,) = UnitSource(units, reading(None, "caption"), None).get_read_tasks(1)
    (unit,) = units
    pickled = put(tmp_path / "task", cloudpickle.dumps((task, unit, reading(None, "caption"))))
    code = (
        "import pickle\n"
        "task, unit, how = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "from llava_batch.read.source import read_blocks\n"
        "assert sum(block.num_rows for block in read_blocks(unit, how)) == 2"
    )
    assert loaded_by(code, pickled) == {"ray"}


@pytest.mark.parametrize(("which", "column"), [(0, "caption"), (2, "txt")], ids=["tar", "folder"])
def test_columns_are_looked_for_without_reading_images(tmp_path, which, column, monkeypatch):
    # The driver read the first 32 images of up to 16 units to learn a column's name.
    (unit,) = units_of(shards(tmp_path)[which])
    given: list[Row] = []

    def rows(unit, how):
        for row in read_rows(unit, how):
            given.append(row)
            yield row

    read_rows = kinds.read_rows
    monkeypatch.setattr(kinds, "read_rows", rows)
    assert column in first_row(unit, reading(None, column))
    assert len(given) == 1 and not any(row.images for row in given)


def test_a_limit_stops_reading_a_tar_early(tmp_path, monkeypatch):
    images = {f"{n:04}.png": picture(n) for n in range(500)}
    (unit,) = units_of(put(tmp_path / "a.tar", tar_bytes(images)))
    seen: list = []

    def members(*arguments):
        for member in tar_members.members(*arguments):
            seen.append(member)
            yield member

    monkeypatch.setattr("llava_batch.read.tar.members", members)
    monkeypatch.setattr(source, "_read_carefully", lambda u, how, shared: read_blocks(u, how))
    blocks = [*source.read_in_turn([replace(unit, limit=5)], reading(), None)]
    assert sum(block.num_rows for block in blocks) == 5 + 1
    assert len(seen) < 10
