"""A Parquet file → rows, one row group at a time, a bounded number of rows in memory.

The image column is found by type and name: `binary`, Hugging Face's `struct<bytes, path>`, or a
list of either. Keys are the key column's values, else row numbers in the whole file. A row group
that does not read gives a `shard_damaged` row for each of its rows; a file without a footer, one.
"""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import RowError, UsageError
from llava_batch.read.rows import Keys, Row, damaged, missing

_IMAGE_NAMES = ("image", "images", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
_KEY_NAMES = ("key", "__key__")
_ROWS_AT_ONCE = 64
_TRIES = 3


def find_image_column(schema: pa.Schema, wanted: str | None, shown: str) -> str:
    """The name of the image column: `wanted`, or the one that its type and name give away.

    Raises:
        UsageError: none, or several and none of a usual name; the message lists the columns.
    """
    columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
    if wanted is not None:
        if wanted not in schema.names:
            raise UsageError(
                f"--image-column {wanted}: {shown} has no such column; there are {columns}"
            )
        if not _holds_images(schema.field(wanted).type):
            raise UsageError(f"--image-column {wanted}: {schema.field(wanted).type} holds no bytes")
        return wanted
    candidates = [f.name for f in schema if _holds_images(f.type)]
    for name in _IMAGE_NAMES:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]
    problem = "several columns could hold the image" if candidates else "no column holds images"
    raise UsageError(f"{shown}: {problem}; name one with --image-column; there are {columns}")


def find_key_column(schema: pa.Schema, wanted: str | None, shown: str) -> str | None:
    """The name of the key column, or None where rows go by their number."""
    if wanted is not None:
        if wanted not in schema.names:
            raise UsageError(
                f"--key-column {wanted}: {shown} has no such column; "
                f"there are {', '.join(schema.names)}"
            )
        return wanted
    return next((name for name in _KEY_NAMES if name in schema.names), None)


def read_parquet(
    file: pa.NativeFile,
    shown: str,
    *,
    row_groups: tuple[int, int] | None,
    image_column: str | None,
    key_column: str | None,
    columns: tuple[str, ...],
    max_image_bytes: int,
) -> Iterator[Row]:
    """The rows of `row_groups` (all where None); `columns` are read beside the image if present."""
    try:
        reader = pq.ParquetFile(file, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        yield damaged("", "%damaged-1", f"no Parquet file can be read here: {error}")
        return
    schema = reader.schema_arrow
    try:
        image = find_image_column(schema, image_column, shown)
        key = find_key_column(schema, key_column, shown)
    except UsageError as error:
        image, key, problem = "", None, str(error)
    asked = dict.fromkeys((image, key or "", *columns, "error_message"))
    wanted = [c for c in asked if c in schema.names]
    first, last = row_groups or (0, reader.metadata.num_row_groups)
    start = sum(reader.metadata.row_group(i).num_rows for i in range(first))
    keys = Keys()
    for group in range(first, last):
        num_rows = reader.metadata.row_group(group).num_rows
        if not image:
            yield from (missing(str(start + i), problem) for i in range(num_rows))
        else:
            yield from _read_group(reader, group, start, wanted, image, key, keys, max_image_bytes)
        start += num_rows


def _read_group(
    reader: pq.ParquetFile,
    group: int,
    start: int,
    wanted: list[str],
    image: str,
    key: str | None,
    keys: Keys,
    max_image_bytes: int,
) -> Iterator[Row]:
    """The rows of one row group; what still could not be read at the third try, as damaged rows."""
    done, num_rows, problem = 0, reader.metadata.row_group(group).num_rows, ""
    for attempt in range(_TRIES):
        try:
            for values in islice(_values(reader, group, wanted), done, None):
                name = values.get(key) if key else None
                own = str(start + done) if name is None else str(name)
                yield _row(own, keys.mark(own), values, image, max_image_bytes)
                done += 1
            return
        except (OSError, ValueError) as error:
            problem = f"row group {group} cannot be read: {error}"
            time.sleep(0.2 * attempt)  # a store may have hiccuped; damage stays damage
    for i in range(done, num_rows):
        yield damaged(str(start + i), "%row", problem)


def _values(reader: pq.ParquetFile, group: int, wanted: list[str]) -> Iterator[dict[str, Any]]:
    for batch in reader.iter_batches(_ROWS_AT_ONCE, [group], wanted, use_threads=False):
        yield from batch.to_pylist()


def _row(key: str, mark: str, values: dict[str, Any], image: str, max_image_bytes: int) -> Row:
    cell = values.pop(image)
    cells = cell if isinstance(cell, list) else [cell]
    images: tuple[bytes, ...] = tuple(
        (c.get("bytes") if isinstance(c, dict) else c) or b"" for c in cells
    )
    if not images or not all(images):
        said = values.get("error_message")
        what = f"null or empty {image}" + (f": {said}" if said else "")
        return Row(key=key, mark=mark, columns=values, error=(RowError.IMAGE_MISSING, what))
    largest = max(len(i) for i in images)
    if largest > max_image_bytes:
        what = f"{largest} bytes, the limit is {max_image_bytes} (--max-image-bytes)"
        return Row(key=key, mark=mark, columns=values, error=(RowError.IMAGE_TOO_LARGE, what))
    return Row(key=key, mark=mark, images=images, columns=values)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
