"""How many rows a tar has, by its headers alone: a local one whole, of one in an object store the head.

On a local disk the members are passed over by seeking, some 10 µs each. In an object store each of
those would be a request of its own: HEAD_BYTES are streamed instead, and the rest is taken to be like them.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from llava_batch.unit import Unit

HEAD_BYTES = 32 * 2**20
MOST_MEMBERS = 100_000
"""Of one tar that are looked at: about a second."""
_BUFFER_BYTES = 2**18
_STREAM_BYTES = 4 * 2**20


@contextmanager
def to_look_into(unit: Unit) -> Iterator[tuple[IO[bytes], int | None]]:
    """The tar, and how many of its bytes are to be looked at; None: all."""
    if unit.fs.type_name == "local":
        with unit.fs.open_input_file(unit.path) as file:
            yield file, None
    else:
        with unit.fs.open_input_stream(unit.path, buffer_size=_STREAM_BYTES) as stream:
            yield stream, HEAD_BYTES


@contextmanager
def opened_at(unit: Unit, start: int) -> Iterator[IO[bytes]]:
    """The tar from byte `start` on, to be read forward."""
    with unit.fs.open_input_file(unit.path) as file:
        file.seek(start)
        yield io.BufferedReader(_Forward(file), _BUFFER_BYTES)


class _Forward(io.RawIOBase):
    """An open file as Python's own buffers want it; not to be sought in."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
