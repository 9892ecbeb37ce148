"""A file whose storage failing, or the machine's memory, can be told from what is wrong inside it.

pyarrow raises OSError for a lost connection and for a corrupt page alike. The first must leave the
unit open, the second is rows in error; read through `stored`, the first is a `StorageFailed`. It
raises MemoryError where memory is short, and where a damaged size asks for more than there could be.
"""

import os
import re
from typing import Any

import pyarrow as pa


class StorageFailed(OSError):
    """The storage did not give the bytes; says nothing of what is in them."""


_ASKED = re.compile(r"alloc of size (\d+) failed")


def is_damage(error: Exception) -> bool:
    """Whether an error of pyarrow's is about what a file holds; otherwise it may go well next time."""
    if not isinstance(error, MemoryError):
        return not isinstance(error, StorageFailed)
    asked = _ASKED.search(str(error))
    there_is = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return asked is not None and int(asked[1]) > there_is


def stored(file: pa.NativeFile) -> pa.PythonFile:
    """`file`, random access, its failures as `StorageFailed`."""
    return pa.PythonFile(_Stored(file), mode="r")


class _Stored:
    """What pyarrow needs of a Python file."""

    closed = False

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        left = self._file.size() - self._file.tell()  # a damaged size asks for more
        data: bytes = _told(self._file.read, left if size < 0 else min(size, left))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        place: int = _told(self._file.seek, offset, whence)
        return place

    def tell(self) -> int:
        place: int = self._file.tell()
        return place

    def close(self) -> None:
        """Whoever opened the file closes it."""


def _told(call: Any, *arguments: int) -> Any:
    try:
        return call(*arguments)
    except OSError as error:
        raise StorageFailed(f"{type(error).__name__}: {error}") from error
