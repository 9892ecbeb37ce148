"""Scratch: rows of open units, in files of this machine, from which they are read when their unit is whole.

Memory holds where they lie, and no row. The files have no names, so a process that is killed leaves nothing; one
goes with the last rows in it that anybody asks for. They lie in `TMPDIR` where that is set, else in the usual
folder for temporary files, or in /var/tmp where the usual one is memory (tmpfs): rows there would be
held in memory after all.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import IO, Protocol

import pyarrow as pa

_FILE_BYTES = 256 * 2**20
"""Written to one file, from which on the next begins."""
_IN_MEMORY = ("tmpfs", "ramfs")
_BESIDE = "/var/tmp"


class Rows(Protocol):
    """Rows of one unit, wherever they lie."""

    @property
    def num_rows(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def read(self) -> pa.Table:
        """The rows, in memory."""


@dataclass(frozen=True)
class Held:
    """Rows that lie in memory."""

    table: pa.Table

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)

    @property
    def nbytes(self) -> int:
        return int(self.table.nbytes)

    def read(self) -> pa.Table:
        return self.table


@dataclass(frozen=True)
class Kept:
    """Rows that lie in a scratch file: record batches of an IPC stream, in `nbytes` from `start`."""

    num_rows: int
    nbytes: int
    start: int
    schema: pa.Schema
    file: IO[bytes]

    def read(self) -> pa.Table:
        data = os.pread(self.file.fileno(), self.nbytes, self.start)
        messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(data))
        batches = [
            pa.ipc.read_record_batch(message, self.schema)
            for message in messages
            if message.type == "record batch"
        ]
        return pa.Table.from_batches(batches, self.schema)


class Scratch:
    """Where the rows of one run's open units are put; one file after the other."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = 0

    def put(self, tables: Sequence[pa.Table]) -> tuple[list[Kept], pa.Buffer]:
        """Put tables of one schema there; where each lies, and all of them as an IPC stream."""
        sink = pa.BufferOutputStream()
        bounds = [0]
        with pa.ipc.new_stream(sink, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table.combine_chunks())
                bounds.append(sink.tell())
        data = sink.getvalue()
        if self._file is None or self._size >= _FILE_BYTES:
            self._file = tempfile.TemporaryFile(prefix="llava-batch-", dir=folder())  # noqa: SIM115
            self._size = 0
        at, self._size = self._size, self._size + data.size
        self._file.write(data)
        self._file.flush()
        kept = [
            Kept(table.num_rows, past - first, at + first, table.schema, self._file)
            for table, first, past in zip(tables, bounds, bounds[1:], strict=False)
        ]
        return kept, data


@cache
def folder() -> str:
    """Where temporary files of any size may lie; said once on stderr where that is memory."""
    usual = tempfile.gettempdir()
    if "TMPDIR" in os.environ or not is_memory(usual):
        return usual
    if os.access(_BESIDE, os.W_OK) and not is_memory(_BESIDE):
        return _BESIDE
    print(f"{usual} is memory (tmpfs): rows of open units take it up; name a folder on a disk in TMPDIR",
          file=sys.stderr, flush=True)  # fmt: skip
    return usual


def is_memory(path: str, mounts: str = "/proc/self/mounts") -> bool:
    """Whether a folder lies in memory (Linux; elsewhere nothing says so)."""
    try:
        with open(mounts, encoding="utf-8", errors="replace") as file:
            found = [line.split()[1:3] for line in file]
    except OSError:
        return False
    real = os.path.realpath(path)
    around = [
        (at, kind) for at, kind in found if real == at or real.startswith(at.rstrip("/") + "/")
    ]
    return max(around, key=lambda mount: len(mount[0]), default=("", ""))[1] in _IN_MEMORY
