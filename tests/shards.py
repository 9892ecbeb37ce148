"""Shards made by the tests, sound and damaged, and how they read."""

import io
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llava_batch.job import Job
from llava_batch.read.find import find_units
from llava_batch.read.reading import Reading
from llava_batch.read.source import read_blocks
from llava_batch.unit import Unit


@cache
def picture(number: int = 0, format: str = "PNG") -> bytes:
    """A small image; each number gives other bytes."""
    image = Image.new("RGB", (16 + number % 7, 12), (number % 256, number // 256 % 256, 90))
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def tar_bytes(members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    """A tar of `members` in order, in the format that Python's tarfile writes by default."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def put_parquet(path: Path, columns: Mapping[str, Any], *, rows_in_group: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(dict(columns)),
        path,
        row_group_size=rows_in_group,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    return path


def reading(keep: pa.Schema | None = None, *columns: str, **settings: Any) -> Reading:
    return Reading.of(Job(**settings), columns, pa.schema([]) if keep is None else keep)


def units_of(*paths: Path) -> list[Unit]:
    return find_units([str(path) for path in paths])


def rows_of(unit: Unit, how: Reading | None = None) -> list[dict[str, Any]]:
    """The unit's rows as a reader hands them on; the end row is checked and left out."""
    rows = [r for block in read_blocks(unit, how or reading()) for r in block.to_pylist()]
    *rows, end = rows
    assert end["end"] and end["ordinal"] == len(rows) and end["error_code"] is None, end
    assert [r["ordinal"] for r in rows] == list(range(len(rows)))
    assert all(bool(r["images"] or r["uris"]) != bool(r["error_code"]) for r in rows)
    names = [(r["key"], r["mark"]) for r in rows]
    assert len(set(names)) == len(names), "an id stands twice"
    return rows


def read(path: Path, how: Reading | None = None) -> list[dict[str, Any]]:
    """The rows of the one shard at `path`."""
    (unit,) = units_of(path)
    return rows_of(unit, how)


def outcome(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Each row's key and mark, with its error code or `ok`."""
    return {r["key"] + (r["mark"] or ""): r["error_code"] or "ok" for r in rows}
