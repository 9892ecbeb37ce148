"""A Parquet file → rows, one row group at a time, a bounded number of rows in memory.

The image column is found by type and name: `binary`, Hugging Face's `struct<bytes, path>`, or a
list of either. Keys are the key column's values, else row numbers in the whole file. A row group
that does not read gives a `shard_damaged` row for each of its rows, a value that does not, one for
its own row; a file without a footer, one. What the storage does not give is raised.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import RowError, UsageError
from llava_batch.read.exact import rows_of
from llava_batch.read.row import Keys, Row, damaged, missing
from llava_batch.read.storage_failed import StorageFailed, stored

_IMAGE_NAMES = ("image", "images", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
_KEY_NAMES = ("key", "__key__")
_ROWS_AT_ONCE = 64
_UNREADABLE = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)
"""What pyarrow raises for damage: bad pages, bad text, sizes and dates out of all bounds."""


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
    """The rows of `row_groups` (all where None); `columns` are read beside the image if present.

    Raises:
        StorageFailed: the storage failed, as `read.stored` tells it from damage.
    """
    size = file.size()
    try:
        reader = pq.ParquetFile(stored(file), page_checksum_verification=True)
        schema = reader.schema_arrow
        names = list(schema.names)
        counts = [reader.metadata.row_group(i).num_rows for i in range(reader.num_row_groups)]
    except StorageFailed:
        raise
    except _UNREADABLE as error:
        yield damaged("", "%damaged-1", f"no Parquet file can be read here: {error}")
        return
    try:
        image = find_image_column(schema, image_column, shown)
        key = find_key_column(schema, key_column, shown)
    except UsageError as error:
        image, key, problem = "", None, str(error)
    asked = dict.fromkeys((image, key or "", *columns, "error_message"))
    wanted = [c for c in asked if c in names]
    keys = Keys()
    for group in range(*(row_groups or (0, len(counts)))):
        start = sum(counts[:group])
        if image:
            rows = _group(reader, group, start, wanted, image, key, keys, max_image_bytes)
        else:
            rows = (missing(str(start + i), problem) for i in range(counts[group]))
        done = 0
        try:
            for row in rows:
                yield row
                done += 1
        except StorageFailed:
            raise
        except _UNREADABLE as error:
            what = f"row group {group} cannot be read: {error}"
            yield from _lost(start + done, counts[group] - done, size, what)


def _group(
    reader: pq.ParquetFile,
    group: int,
    start: int,
    wanted: list[str],
    image: str,
    key: str | None,
    keys: Keys,
    max_image_bytes: int,
) -> Iterator[Row]:
    """The rows of one row group; raises `_UNREADABLE` where it stops reading."""
    number = start
    for batch in reader.iter_batches(_ROWS_AT_ONCE, [group], wanted, use_threads=False):
        for values in _values(batch):
            if isinstance(values, str):
                yield damaged(str(number), "%row", values)
            else:
                own = _key(values.get(key)) if key else None
                own = str(number) if own is None else own
                yield _row(own, keys.mark(own), values, image, max_image_bytes)
            number += 1


def _values(batch: pa.RecordBatch) -> list[dict[str, Any] | str]:
    """Each row's values, or what is wrong with a row of which one cannot be read."""
    try:
        return [*rows_of(batch)]
    except _UNREADABLE:
        return [_values_of_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _values_of_row(row: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        return rows_of(row)[0]
    except _UNREADABLE as error:
        return f"a value of this row cannot be read: {error}"


def _lost(start: int, count: int, file_bytes: int, what: str) -> Iterator[Row]:
    """A row for each lost one; a single one where the footer claims more rows than there are bytes."""
    if count > file_bytes:
        yield damaged(str(start), "%row", f"{what} ({count} rows)")
        return
    for i in range(count):
        yield damaged(str(start + i), "%row", what)


def _key(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return None if value is None else str(value)


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
