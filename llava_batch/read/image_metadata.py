"""Image metadata: Hugging Face's `metadata.csv`, `.jsonl` or `.parquet` in a folder of images.

A row gives its columns to the image that its `file_name` names, a path below the file's folder. Of several
rows about one image the nearest file's counts, and in it the first. Values of a CSV file are text. What a
file has of an image is looked up by reading it through, so that no more is held than was asked for.
"""

import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llava_batch.errors import UsageError
from llava_batch.read.exact import rows_of
from llava_batch.read.storage_failed import is_damage, stored
from llava_batch.read.table_rows import UNREADABLE
from llava_batch.read.text_tables import text_columns, text_rows
from llava_batch.storage import Location

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"

_ROWS_AT_ONCE = 1000


def names_files(at: Location) -> bool:
    """Whether the file is such metadata: it has a column `file_name` of text."""
    try:
        if at.path.endswith(".parquet"):
            with at.fs.open_input_file(at.path) as file:
                schema = pq.read_schema(stored(file))
        else:
            schema = text_columns(at)
    except UsageError:
        return False
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        return False
    kinds = [field.type for field in schema if field.name == FILE_NAME]
    return any(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds)


def columns_of(
    fs: pafs.FileSystem, metadata: Iterable[str], images: Collection[str]
) -> dict[str, dict[str, Any]]:
    """The columns that the files in `metadata` have of `images`, by the image's path."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(metadata, key=lambda path: -path.count("/")):
        for row in _rows(Location(fs, path, path)):
            image = _image(path, row)
            if image in images:
                found.setdefault(image, row or {})
                if len(found) == len(images):
                    return found
    return found


def strays(at: Location, images: Collection[str]) -> Counter[str]:
    """What is in a file of metadata and belongs to none of `images`, or to one that has its row."""
    name = posixpath.basename(at.path)
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    for row in _rows(at, [FILE_NAME]):
        image = _image(at.path, row)
        if row is None:
            counts[f"rows of {name} that do not read"] += 1
        elif image not in images:
            counts[f"rows of {name} whose file is not there"] += 1
        elif image in seen:
            counts[f"rows of {name} about an image that has one"] += 1
        seen.add(image)
    return counts


def _image(metadata: str, row: dict[str, Any] | None) -> str:
    """The path of the image that a row is about; "" where it names none below the file's folder."""
    name = (row or {}).get(FILE_NAME)
    folder = posixpath.dirname(metadata)
    path = posixpath.normpath(f"{folder}/{name}") if isinstance(name, str) else ""
    return path if path.startswith(f"{folder}/") else ""


def _rows(at: Location, columns: list[str] | None = None) -> Iterator[dict[str, Any] | None]:
    """Each row's values, of a Parquet file only those of `columns`; None for one that does not read."""
    if not at.path.endswith(".parquet"):
        yield from text_rows(at)
        return
    try:
        with at.fs.open_input_file(at.path) as file:
            for batch in pq.ParquetFile(stored(file)).iter_batches(_ROWS_AT_ONCE, columns=columns):
                yield from rows_of(batch)
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        yield None
