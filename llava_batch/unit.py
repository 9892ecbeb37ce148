"""Unit: what is read, answered and committed as a whole. Found by `read`, committed by `write`."""

from dataclasses import dataclass, field

import pyarrow.fs as pafs

ROW_RULES = 2
"""The newest rules of which rows an input has and what their keys are. By the first, 1, a tar had a
row for each sample of WebDataset's."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit of work. Picklable; `fs` carries the credentials to the worker that reads it."""

    name: str
    kind: str
    """The name of its kind: `tar`, `parquet`, `files`, or another of `read.kinds`."""
    path: str
    shown: str
    fs: pafs.FileSystem = field(compare=False, repr=False)
    source: str
    """Fingerprint of the input: sizes and modification times. Another one: answered again."""
    row_groups: tuple[int, int] | None = None
    """Parquet: first and one past the last row group; None is the whole file."""
    members: tuple[str, ...] = ()
    """Loose files, as paths below `path`."""
    limit: int | None = None
    """Read at most this many images (`--limit`); such a unit is never complete."""
    retry: frozenset[str] | None = None
    """`--retry-errors`: read only the images of these names (see `ids.name_in_unit`)."""
    rules: int = ROW_RULES
    """By which rules its rows are made and named: for rows answered before, those of then."""

    @property
    def input(self) -> str:
        """Where its input lies, the same in every run and without credentials."""
        return f"{self.fs.type_name}:{self.path}"
