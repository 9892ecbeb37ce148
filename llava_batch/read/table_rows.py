"""Table rows: record batches of a table → rows, whichever library read them.

The image cell holds bytes, Hugging Face's `struct<bytes, path>`, or a list of either. A row's key is
its key column's value, else its number in the table. A batch of which a value cannot be turned into
Python costs the rows of those values alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llava_batch.errors import RowError
from llava_batch.ids import name_in_unit
from llava_batch.read.exact import rows_of
from llava_batch.read.row import Keys, Row, damaged
from llava_batch.read.storage_failed import is_damage

UNKEYED = "%row"
"""The mark of a row that is damaged: it goes by its number, for its key cannot be read."""

UNREADABLE = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)
"""What pyarrow raises for damage: bad pages, bad text, sizes and dates out of all bounds. Not only for
damage: see `is_damage`."""


class Names:
    """What tells a row from all others: its key and mark, or its number in the file."""

    def __init__(self, column: str | None, retry: frozenset[str]) -> None:
        self._column = column
        self._retry = retry
        self._keys = Keys()

    def of(self, number: int, values: dict[str, Any]) -> tuple[str, str]:
        """Key and mark; those of before for a row that was damaged, whose key could not be read."""
        if name_in_unit(str(number), UNKEYED) in self._retry:
            return str(number), UNKEYED
        value = None if self._column is None else values.get(self._column)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        key = str(number if value is None else value)
        return key, self._keys.mark(key)


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """What makes rows of a table's batches: its image column, how rows are named, and limits."""

    image: str
    names: Names
    max_image_bytes: int

    def batch(self, batch: pa.RecordBatch, start: int) -> Iterator[Row]:
        """The rows of one batch, `start` its first's number."""
        for number, values in enumerate(_values(batch), start):
            if isinstance(values, str):
                yield damaged(str(number), UNKEYED, values)
            else:
                yield self.row(number, values)

    def row(self, number: int, values: dict[str, Any]) -> Row:
        """The row of one row's values, `number` its own."""
        return self._row(*self.names.of(number, values), values)

    def _row(self, key: str, mark: str, values: dict[str, Any]) -> Row:
        cell = values.pop(self.image)
        cells = cell if isinstance(cell, list) else [cell]
        images: tuple[bytes, ...] = tuple(
            (c.get("bytes") if isinstance(c, dict) else c) or b"" for c in cells
        )
        if not images or not all(images):
            said = values.get("error_message")
            what = f"null or empty {self.image}" + (f": {said}" if said else "")
            return Row(key=key, mark=mark, columns=values, error=(RowError.IMAGE_MISSING, what))
        largest = max(map(len, images))
        if largest > self.max_image_bytes:
            what = f"{largest} bytes, the limit is {self.max_image_bytes} (--max-image-bytes)"
            return Row(key=key, mark=mark, columns=values, error=(RowError.IMAGE_TOO_LARGE, what))
        return Row(key=key, mark=mark, images=images, columns=values)


def _values(batch: pa.RecordBatch) -> list[dict[str, Any] | str]:
    """Each row's values, or what is wrong with a row of which one cannot be read."""
    try:
        return [*rows_of(batch)]
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        return [_values_of_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _values_of_row(row: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        return rows_of(row)[0]
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        return f"a value of this row cannot be read: {error}"
