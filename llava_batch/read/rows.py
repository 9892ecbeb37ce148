"""Row: one image (or list of images) as a reader yields it, before it becomes an Arrow block."""

from dataclasses import dataclass, field
from typing import Any

from llava_batch.errors import RowError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a unit. Exactly one of `images` and `error` says something.

    `columns` holds what else the row carries (caption, url, …), as the shard has it.
    """

    key: str
    images: tuple[bytes, ...] = ()
    columns: dict[str, Any] = field(default_factory=dict)
    error: tuple[RowError, str] | None = None


def damaged(key: str, what: str) -> Row:
    """The row that stands for a part of a shard that could not be read; `%` keeps its key apart."""
    return Row(key=key, error=(RowError.SHARD_DAMAGED, what))


def missing(key: str, what: str, columns: dict[str, Any] | None = None) -> Row:
    """The row of a sample that has no image."""
    return Row(key=key, columns=columns or {}, error=(RowError.IMAGE_MISSING, what))
