"""The kinds of input: one file and one line of the registry each, and nothing heavy loaded."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from llava_batch.cli.inspect_inputs import inspect
from llava_batch.read.columns import keep_schema
from llava_batch.read.find import find_units
from llava_batch.read.kinds import KINDS, count_rows, first_row
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Row
from llava_batch.unit import Unit
from tests.shards import picture, put, reading, rows_of


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
    assert count_rows(unit, reading(), 2) == 2
    (found,) = inspect([str(path)])
    assert (found.kind, found.rows, found.sampled) == ("lines", 3, 3)
    assert found.columns == {"where": "string"}
