"""A local folder as an object store would give it: a stated latency before every request, each counted.

    storage = SlowStorage(latency_s=0.025)
    location = storage.location("/tmp/out")        # a llava_batch.storage.Location
    storage.register()                             # from here on `locate("slow:///tmp/out")` finds it too

What counts as a request is what an S3 bucket is asked: one for each 1,000 names of a listing, one after the
other; one for each path looked at; one for opening a file and one for each read of it; one for a file
written (at its end, where it becomes visible) or deleted; none for a folder, of which a bucket has none.
Requests on several threads wait at the same time. Picklable: in another process the latency is the same,
the count its own (a worker needs this file's folder in PYTHONPATH).
"""

import io
import threading
import time
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from llava_batch import storage
from llava_batch.storage import Location

SCHEME = "slow"
PAGE = 1000
"""Names in one answer to a listing."""


class SlowStorage:
    """The local disk behind a latency; `latency_s` is of every request, `put_s` of a write where it differs."""

    def __init__(self, latency_s: float = 0.025, put_s: float | None = None) -> None:
        self.latency_s = latency_s
        self.put_s = latency_s if put_s is None else put_s
        self.requests: Counter[str] = Counter()
        """How many of each kind: `list`, `head`, `get`, `put`, `delete`."""
        self._lock = threading.Lock()

    @property
    def num_requests(self) -> int:
        return self.requests.total()

    @property
    def fs(self) -> pafs.FileSystem:
        return pafs.PyFileSystem(_Handler(self))

    def location(self, path: str) -> Location:
        return Location(self.fs, path, f"{SCHEME}://{path}")

    def register(self) -> None:
        """Have this process's `locate` open `slow://` URIs here."""
        before = storage._from_uri

        def from_uri(text: str) -> tuple[pafs.FileSystem, str]:
            if text.startswith(f"{SCHEME}://"):
                return self.fs, text.removeprefix(f"{SCHEME}://")
            return before(text)

        storage._from_uri = from_uri

    def ask(self, kind: str, times: int = 1) -> None:
        """Count a request, `times` of them one after the other, and wait for it."""
        with self._lock:
            self.requests[kind] += times
        time.sleep(times * (self.put_s if kind == "put" else self.latency_s))

    def __getstate__(self) -> dict[str, Any]:
        return {"latency_s": self.latency_s, "put_s": self.put_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Handler(pafs.FileSystemHandler):
    """What pyarrow calls; the local disk's own answers after the wait."""

    def __init__(self, slow: SlowStorage) -> None:
        self.slow = slow
        self._disk = pafs.LocalFileSystem()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        return SCHEME

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self.slow.ask("head", len(paths))
        return self._disk.get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        found = self._disk.get_file_info(selector)
        self.slow.ask("list", max(1, -(-len(found) // PAGE)))
        return found

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.slow.ask("head")
        return pa.PythonFile(_Reading(self.slow, self._disk.open_input_file(path)), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        self._disk.create_dir(path.rpartition("/")[0], recursive=True)
        return pa.PythonFile(_Writing(self.slow, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("an object store appends nothing")

    def delete_file(self, path: str) -> None:
        self.slow.ask("delete")
        self._disk.delete_file(path)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._disk.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self.slow.ask("delete")
        self._disk.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.slow.ask("delete")
        self._disk.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("not the whole disk")

    def move(self, src: str, dest: str) -> None:
        self.slow.ask("put")
        self._disk.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self.slow.ask("put")
        self._disk.copy_file(src, dest)


class _Reading(io.RawIOBase):
    """An open file of which each read is a request."""

    def __init__(self, slow: SlowStorage, file: pa.NativeFile) -> None:
        self._slow, self._file = slow, file
        self._size = file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def size(self) -> int:
        return self._size

    def read(self, size: int | None = -1) -> bytes:
        if self._file.tell() >= self._size:
            return b""
        self._slow.ask("get")
        return self._file.read(None if size is None or size < 0 else size)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Writing(io.BytesIO):
    """What is written becomes a file when it is closed, at once."""

    def __init__(self, slow: SlowStorage, path: str) -> None:
        super().__init__()
        self._slow, self._path = slow, path

    def close(self) -> None:
        if not self.closed:
            self._slow.ask("put")
            with open(self._path, "wb") as file:
                file.write(self.getbuffer())
            super().close()
