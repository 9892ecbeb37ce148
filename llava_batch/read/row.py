"""Row: one image (or list of images) as a reader yields it, before it becomes an Arrow block."""

from dataclasses import dataclass, field
from typing import Any

from llava_batch.errors import RowError
from llava_batch.ids import name_in_unit, printable


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a unit: its bytes, or where they are to be fetched from, or what is wrong with it.

    `columns` holds what else the row carries (caption, url, …), as the shard has it.
    """

    key: str
    mark: str = ""
    """What keeps ids apart where keys alone do not: `%dup2`, `%damaged-1`, `%row`."""
    images: tuple[bytes, ...] = ()
    uris: tuple[str, ...] = ()
    """Where the images lie, absolute (`read.uris`): empty where all of `images` is there, else one for
    each image, and "" for one whose bytes stand in `images` (which is then as long, b"" for the others).
    A reader never fetches."""
    columns: dict[str, Any] = field(default_factory=dict)
    error: tuple[RowError, str] | None = None

    @property
    def name(self) -> str:
        """The image's id within its unit: the key escaped, and the mark."""
        return name_in_unit(self.key, self.mark)


def damaged(key: str, mark: str, what: str) -> Row:
    """The row that stands for a part of a shard that could not be read."""
    return Row(key=key, mark=mark, error=(RowError.SHARD_DAMAGED, what))


def missing(key: str, what: str, columns: dict[str, Any] | None = None) -> Row:
    """The row of a sample that has no image."""
    return Row(key=key, columns=columns or {}, error=(RowError.IMAGE_MISSING, what))


class Keys:
    """Tells apart the rows of one unit that share a key: the second is marked `%dup2`, and so on."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __contains__(self, key: str) -> bool:
        return printable(key) in self._seen

    def mark(self, key: str) -> str:
        """The mark for one more row of this key: empty for the first."""
        key = printable(key)  # as it stands in the id: stray bytes and their escapes are one key
        count = self._seen[key] = self._seen.get(key, 0) + 1
        return "" if count == 1 else f"%dup{count}"
