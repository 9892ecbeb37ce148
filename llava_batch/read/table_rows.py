"""Table rows: record batches of a table → rows, whichever library read them.

The image cell holds bytes, text (a path or a URI, to be fetched later), Hugging Face's
`struct<bytes, path>`, whose path counts where its bytes are null, or a list of these. A row's key is
its key column's value, else its number in the table. A batch of which a value cannot be turned into
Python costs the rows of those values alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pyarrow as pa

from llava_batch.errors import RowError
from llava_batch.ids import name_in_unit
from llava_batch.read.exact import rows_of
from llava_batch.read.row import Keys, Row, damaged
from llava_batch.read.storage_failed import is_damage
from llava_batch.read.uris import Escapes, absolute

UNKEYED = "%row"
"""The mark of a row that is damaged: it goes by its number, for its key cannot be read."""

UNREADABLE = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)
"""What pyarrow raises for damage: bad pages, bad text, sizes and dates out of all bounds. Not only for
damage: see `is_damage`."""


class Names:
    """What tells a row from all others: its key and mark, or its number in the file."""

    def __init__(
        self, column: str | None, retry: frozenset[str], *, number_prefix: str = ""
    ) -> None:
        self._column = column
        self._retry = retry
        self._number_prefix = number_prefix
        self._keys = Keys()

    def of_damaged(self, number: int) -> tuple[str, str]:
        """Key and mark of a row whose key cannot be read; with the prefix, where ids of several files
        begin alike."""
        return f"{self._number_prefix}{number}", UNKEYED

    def of(self, number: int, values: dict[str, Any]) -> tuple[str, str]:
        """Key and mark; those of before for a row that was damaged, whose key could not be read."""
        unread = self.of_damaged(number)
        if name_in_unit(*unread) in self._retry:
            return unread
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
    root: str
    """Where relative paths in the image column start (`read.uris.root_of`)."""

    def batch(self, batch: pa.RecordBatch, start: int) -> Iterator[Row]:
        """The rows of one batch, `start` its first's number."""
        return self.numbered(batch, count(start))

    def numbered(self, batch: pa.RecordBatch, numbers: Iterable[int]) -> Iterator[Row]:
        """The rows of one batch, each with its number in the file."""
        for number, values in zip(numbers, _values(batch), strict=False):
            if isinstance(values, str):
                yield damaged(*self.names.of_damaged(number), values)
            else:
                yield self.row(number, values)

    def row(self, number: int, values: dict[str, Any]) -> Row:
        """The row of one row's values, `number` its own."""
        return self._row(*self.names.of(number, values), values)

    def _row(self, key: str, mark: str, values: dict[str, Any]) -> Row:
        cell = values.pop(self.image)
        if isinstance(cell, str):
            values[self.image] = cell  # where it lies is a column like any other
        row = partial(Row, key=key, mark=mark, columns=values)
        found = [_bytes_or_text(c) for c in (cell if isinstance(cell, list) else [cell])]
        if not found or not all(found):
            said = values.get("error_message")
            what = f"null or empty {self.image}" + (f": {said}" if said else "")
            return row(error=(RowError.IMAGE_MISSING, what))
        images = tuple(f if isinstance(f, bytes) else b"" for f in found)
        largest = max(map(len, images))
        if largest > self.max_image_bytes:
            what = f"{largest} bytes, the limit is {self.max_image_bytes} (--max-image-bytes)"
            return row(error=(RowError.IMAGE_TOO_LARGE, what))
        if all(images):
            return row(images=images)
        try:
            uris = tuple(absolute(f, self.root) if isinstance(f, str) else "" for f in found)
        except Escapes as error:
            return row(error=(RowError.IMAGE_MISSING, str(error)))
        return row(images=images if any(images) else (), uris=uris)


def _bytes_or_text(cell: Any) -> bytes | str:
    """One image as the cell has it; empty where it has none."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    return cell or b""


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
