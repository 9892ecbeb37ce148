"""Reading: what a reader needs to know of the job. Kind: what the rest asks of a kind of input.

A kind stands in one file, and in the registry (`kinds.py`). Knows nothing of Ray.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from llava_batch.job import Job
from llava_batch.patience import Patience
from llava_batch.read.row import Row
from llava_batch.storage import root_uri
from llava_batch.unit import Unit

Fixed = Mapping[str, tuple[int, int]]
"""The rows of the units that earlier runs made of one text table, by unit name: the number of the first,
and one past the last."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a unit was found to hold without reading its images."""

    images: int
    """Images, those that cannot be read among them, in what was looked at."""
    is_whole: bool = True
    """Whether that is all of the unit."""
    num_bytes: int = 0
    """Bytes of the file that were passed over; 0 where they say nothing of it."""
    starts: tuple[tuple[int, int], ...] = ()
    """Tars: for each image where to begin to read for it, in bytes, and the images between."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader needs to know of the job; small and picklable."""

    prompt_columns: tuple[str, ...]
    keep: pa.Schema
    image_column: str | None
    key_column: str | None
    image_root: str | None
    """Where relative paths in an image column start; None is the table's folder."""
    allow_http: bool
    max_image_bytes: int
    stall_timeout_s: float
    patience: Patience
    max_tries: int

    @classmethod
    def of(cls, job: Job, prompt_columns: Sequence[str], keep: pa.Schema) -> "Reading":
        return cls(
            prompt_columns=tuple(prompt_columns),
            keep=keep,
            image_column=job.image_column,
            key_column=job.key_column,
            image_root=job.image_root and root_uri(job.image_root),
            allow_http=job.allow_http,
            max_image_bytes=job.max_image_bytes,
            stall_timeout_s=job.stall_timeout_s,
            patience=Patience(job.storage_patience),
            max_tries=job.max_tries,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.prompt_columns, *self.keep.names)))


class Kind(Protocol):
    """One kind of input: tars, Parquet files, loose image files."""

    extensions: frozenset[str]
    """Of the files that are of this kind, in lower case, with the dot."""

    only_named: bool = False
    """Whether a folder's files of it are left out: it is read where it is named outright."""

    looks_for_units: bool = False
    """Whether `units` may read the file."""

    def units(self, whole: Unit, size: int, fixed: Fixed) -> list[Unit]:
        """The units that one input file of `size` bytes makes; `whole` is all of it as one. What stands
        in `fixed` stays as it is."""
        return [whole]

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        """The unit's rows, read once.

        Raises:
            OSError: the storage failed (what is wrong *inside* an input is a row in error instead).
        """
        ...

    def refuse(self, unit: Unit, reading: Reading) -> None:
        """Look whether the unit has images where `reading` looks for them.

        Raises:
            UsageError: it is sound and has none: every row of it would be in error. Says what it has.
        """
        return

    def columns(self, unit: Unit) -> pa.Schema | None:
        """The unit's columns, none where it is damaged; None where only its rows tell."""
        return None

    def count(self, unit: Unit) -> int | None:
        """How many rows the unit has, where that can be told without reading them."""
        return None

    def look(self, unit: Unit, reading: Reading) -> Look:
        """How many rows there are, by as little reading as will tell.

        Raises:
            OSError: the storage failed.
        """
        known = self.count(unit)
        number = sum(1 for _ in self.rows(unit, reading)) if known is None else known
        return Look(images=max(number, 0))  # a damaged footer may say anything

    def part(self, unit: Unit, look: Look, first: int, count: int) -> tuple[Unit, int]:
        """A smaller unit that has the rows from `first` on, `count` of them, and how many rows of it
        come before them; the unit itself where it cannot be made smaller."""
        return unit, first
