"""A run of loose image files → rows; the columns are those of image metadata, of a `.json` or
`.txt` beside the image, and the Hive partitions that it lies in.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.fs as pafs

from llava_batch.errors import RowError
from llava_batch.read.image_metadata import columns_of
from llava_batch.read.image_names import IMAGE_EXTENSIONS
from llava_batch.read.partitions import partition_of
from llava_batch.read.reading import Kind, Look, Reading
from llava_batch.read.row import Row, missing
from llava_batch.storage import read_bytes
from llava_batch.unit import Unit


class Files(Kind):
    """A run of image files below one folder; which files make a unit, `find` decides."""

    extensions = IMAGE_EXTENSIONS

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        return read_files(
            unit.fs,
            unit.path,
            unit.members,
            metadata=unit.metadata,
            with_columns=bool(reading.columns),
            max_image_bytes=reading.max_image_bytes,
        )

    def count(self, unit: Unit) -> int:
        return len(unit.members)

    def part(self, unit: Unit, look: Look, first: int, count: int) -> tuple[Unit, int]:
        some = slice(first, first + count)
        return replace(unit, members=unit.members[some], stamps=unit.stamps[some]), 0


def read_files(
    fs: pafs.FileSystem,
    folder: str,
    members: Sequence[str],
    *,
    metadata: tuple[str, ...] = (),
    with_columns: bool,
    max_image_bytes: int,
) -> Iterator[Row]:
    """One row for each member, in order; a file that cannot be read is a row in error."""
    paths = {name: f"{folder}/{name}" for name in members}
    said = columns_of(fs, metadata, {*paths.values()}) if with_columns else {}
    for name, path in paths.items():
        columns = said.get(path, {}) | (_columns(fs, path) if with_columns else {})
        columns |= partition_of(os.path.dirname(path))
        try:
            info = fs.get_file_info(path)
            if info.type == pafs.FileType.NotFound:
                yield missing(name, "the file is no longer there", columns)
            elif info.size > max_image_bytes:
                what = f"{info.size} bytes, the limit is {max_image_bytes} (--max-image-bytes)"
                yield Row(key=name, columns=columns, error=(RowError.IMAGE_TOO_LARGE, what))
            elif data := read_bytes(fs, path):
                yield Row(key=name, images=(data,), columns=columns)
            else:
                yield missing(name, "the file is empty", columns)
        except PermissionError as error:  # any other failure of the storage is the caller's
            what = str(error).replace(path, name)
            yield Row(key=name, columns=columns, error=(RowError.IMAGE_MISSING, what))


def _columns(fs: pafs.FileSystem, path: str) -> dict[str, Any]:
    stem = os.path.splitext(path)[0]
    columns: dict[str, Any] = {}
    try:
        if text := read_bytes(fs, f"{stem}.txt"):
            columns["txt"] = text.decode("utf-8").strip()
        if text := read_bytes(fs, f"{stem}.json"):
            value = json.loads(text)
            columns |= value if isinstance(value, dict) else {}
    except (OSError, ValueError, RecursionError):
        pass  # the columns are null: a prompt that needs one is `bad_prompt`
    return columns
