"""What a table of the lake is asked and told, whichever library writes it.

Errors of a library leave as `PublishFailed`, a line for a person without credentials; a commit that
another writer's came before as `Conflict`, which is looked at anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from llava_batch.errors import RunFailed

PUBLICATION_KEY = "llava_batch.publication"
"""The key in a commit's own metadata by which the newest commit is known as ours."""


class PublishFailed(RunFailed):
    """The table could not be read or written; the answers stand in the output folder."""


class Conflict(PublishFailed):
    """Another writer committed to the table first."""


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest version of a table that is there."""

    version: str
    publication: str | None
    """Which publication made it; None where another writer did."""
    schema: pa.Schema


@dataclass(frozen=True, kw_only=True)
class Change:
    """One commit: rows to add, and units whose rows go."""

    schema: pa.Schema
    publication: str
    folder: str
    """The id of the output folder."""
    going: list[str]
    """Units of which no row that is there stays."""
    adds: bool
    """Whether there are rows to add at all."""
    whole: bool
    """No row that is there stays, and the schema becomes `schema`."""
    said: dict[str, str] = field(default_factory=dict)
    """What the commit's own metadata says, by key."""


class LakeTable(Protocol):
    """A table of the lake that may not be there yet."""

    shown: str
    """As a person may see it, without credentials."""
    place: str
    """The same for every way to name it."""

    def open(self) -> Newest | None:
        """Look at the newest version, on which `counts` and `commit` then stand; None: not there.

        Raises:
            PublishFailed: it cannot be read.
        """
        ...

    def counts(self) -> Iterator[tuple[str | None, str | None, int]]:
        """(unit, unit_version, number of rows) of the opened version, a pair perhaps several times."""
        ...

    def commit(self, change: Change, rows: pa.RecordBatchReader) -> str:
        """Make the change in one commit, streamed; returns the new version.

        Raises:
            Conflict: it was not made, for another commit came first.
            PublishFailed: it was not made, or it is unknown whether it was.
        """
        ...
