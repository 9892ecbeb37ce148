"""Unit: what is read, answered and committed as a whole. Found by `read`, committed by `write`."""

import hashlib
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow.fs as pafs

Stamp = tuple[int, int | None]
"""A file's size in bytes and its modification time in nanoseconds, where the store keeps one."""

_NOT_THERE = (-1, -1)
_NO_TIME = -(2**63)


class Names(Sequence[str]):
    """Names of files in a few bytes each, equal to the tuple of them: a run may have millions."""

    __slots__ = ("_count", "_text")

    def __init__(self, names: Iterable[str]) -> None:
        held = [*names]
        self._count, self._text = len(held), "\0".join(held)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._text.split("\0") if self._count else ())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return (self._count, self._text) == (other._count, other._text)
        return tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class Stamps(Sequence[Stamp | None]):
    """What `Names` is for names, for their stamps; None of a file that is not there."""

    __slots__ = ("_numbers",)

    def __init__(self, stamps: Iterable[Stamp | None]) -> None:
        self._numbers = array("q")
        for stamp in stamps:
            size, mtime_ns = stamp or _NOT_THERE
            self._numbers.extend((size, _NO_TIME if mtime_ns is None else mtime_ns))

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def __iter__(self) -> Iterator[Stamp | None]:
        pairs = zip(self._numbers[::2], self._numbers[1::2], strict=True)
        return (_stamp(*pair) for pair in pairs)

    @overload
    def __getitem__(self, index: int) -> Stamp | None: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Stamp | None, ...]: ...
    def __getitem__(self, index: int | slice) -> Stamp | tuple[Stamp | None, ...] | None:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Stamps):
            return self._numbers == other._numbers
        return tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def _stamp(size: int, mtime_ns: int) -> Stamp | None:
    return None if size < 0 else (size, None if mtime_ns == _NO_TIME else mtime_ns)


ROW_RULES = 3
"""The newest rules of which units an input makes, which rows they have and what their keys are. By the
first, 1, a tar had a row for each sample of WebDataset's; until 2 a Parquet file was split by bytes
alone, however many rows it had."""


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A data file or fragment of a lake table, as of the one snapshot that the run reads."""

    table: str
    """The table's name."""
    snapshot: int
    keyed: bool
    """Whether `--key-column` names the rows: their ids then begin with the table's name."""
    num_rows: int
    """Rows in the file, the deleted ones among them."""
    deleted: bytes = b""
    """Which of its rows the snapshot does not have any more, as `pack_rows` says it."""
    partitions: tuple[str, ...] = ()
    """The columns that the table is partitioned by."""
    how: Any = field(default=None, compare=False, repr=False)
    """What its kind reads it with; picklable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One unit of work; there may be a hundred thousand. Picklable; `fs` carries the credentials to the worker that reads it."""

    name: str
    kind: str
    """The name of its kind: `tar`, `parquet`, `files`, or another of `read.kinds`."""
    path: str
    shown: str
    fs: pafs.FileSystem = field(compare=False, repr=False)
    source: str
    """Fingerprint of the input: sizes and modification times; of a run of rows in a text table, its
    bytes. Another one: the input has changed."""
    row_groups: tuple[int, int] | None = None
    """Parquet: first and one past the last row group; None is the whole file."""
    numbers: tuple[int, int] | None = None
    """Text tables: the number of the first row and one past the last."""
    span: tuple[int, int] | None = None
    """Text tables: where these rows lie in the file, in bytes. Tars: of a sample, where it begins."""
    rows: tuple[int, int] | None = None
    """Parquet: first and one past the last row, counted within `row_groups`; None is all of them."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """Hive partition keys and values on the way to it: columns of all its rows."""
    metadata: tuple[str, ...] = ()
    """Loose files: paths of the files of metadata that have columns of them."""
    members: Sequence[str] = ()
    """Loose files, as paths below `path`."""
    stamps: Sequence[Stamp | None] = ()
    """Of each member; None where it is not there."""
    limit: int | None = None
    """`--limit`: the most images of the whole run; a unit read under it is never complete."""
    retry: frozenset[str] | None = None
    """Read only the images of these names (see `ids.name_in_unit`): those with rows in error under
    `--retry-errors`, and those of `changed`."""
    changed: frozenset[str] = frozenset()
    """Names of loose files that changed since they were answered: their good rows are replaced too."""
    answered: frozenset[int] = frozenset()
    """Places of images, counted in the unit, whose answers a run before this one kept: not read again."""
    rules: int = ROW_RULES
    """By which rules its rows are made and named: for rows answered before, those of then."""
    of_table: TableFile | None = None
    """Of a lake table: which of its files, as of when."""

    @property
    def id_base(self) -> str:
        """What the ids of its rows begin with."""
        keyed = self.of_table is not None and self.of_table.keyed
        return self.of_table.table if self.of_table and keyed else self.name

    @property
    def deleted(self) -> bytes:
        """Rows of its file that are deleted, as `pack_rows` says them; none where it is of no table."""
        return self.of_table.deleted if self.of_table else b""

    @property
    def num_rows(self) -> int | None:
        """Its rows, where they are known without looking into a file."""
        if self.retry is not None:
            return len(self.retry)
        if self.members:
            return len(self.members)
        span = self.numbers or self.rows
        if span is not None:
            return span[1] - span[0]
        if self.of_table is None or self.of_table.num_rows is None:
            return None
        return self.of_table.num_rows - len(unpack_rows(self.of_table.deleted))

    @property
    def num_bytes(self) -> int | None:
        """The size of the file that it is of; None where it is of several."""
        size = self.source.partition("-")[0]
        return int(size) if size.isdigit() and not self.members and self.span is None else None

    @property
    def as_read(self) -> str:
        """Which rows it has, in which places: its input's fingerprint, deleted rows counted."""
        digest = hashlib.sha256(self.deleted).hexdigest()[:16]
        return f"{self.source}-{digest}" if self.deleted else self.source

    @property
    def input(self) -> str:
        """Where its input lies, the same in every run and without credentials."""
        return f"{self.fs.type_name}:{self.path}"


def source_of(members: Sequence[str], stamps: Sequence[Stamp | None]) -> str:
    """The `source` of a unit of loose files."""
    facts = [(m, *stamp) if stamp else (m,) for m, stamp in zip(members, stamps, strict=True)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def pack_rows(numbers: np.ndarray) -> bytes:
    """Row numbers of one file as a compressed bitmap, the same bytes for the same rows; b"" for none."""
    if not len(numbers):
        return b""
    bits = np.zeros(int(numbers.max()) + 1, np.uint8)
    bits[numbers] = 1
    return zlib.compress(np.packbits(bits).tobytes(), 6)


def unpack_rows(packed: bytes) -> np.ndarray:
    """The row numbers of `pack_rows`, in order, as int64."""
    bits = np.frombuffer(zlib.decompress(packed), np.uint8) if packed else np.zeros(0, np.uint8)
    return np.flatnonzero(np.unpackbits(bits))
