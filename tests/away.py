"""A storage that is away for a while, and a time that passes only while somebody waits."""

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from llava_batch.patience import Patience

DOWN = "AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7, Could not connect"


class Clock:
    """Seconds that pass by `sleep` alone; `wakes` is called after each."""

    def __init__(self, wakes: Callable[[float], None] = lambda now: None) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._wakes = wakes

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self._wakes(self.now)

    def patience(self, seconds: float = 600.0) -> Patience:
        return Patience(seconds, sleep=self.sleep, clock=lambda: self.now)


class Store(pafs.FileSystemHandler):
    """An object store in memory, as `Store().fs`; every call fails while `down` says so."""

    def __init__(self, down: Callable[[], bool] = lambda: False) -> None:
        self.down = down
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.opened: list[str] = []
        self.fs = pafs.PyFileSystem(self)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.down():
            raise OSError(DOWN)

    def get_type_name(self) -> str:
        return "store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self._call("info")
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        if path in self.objects:
            return pafs.FileInfo(path, pafs.FileType.File, size=len(self.objects[path]))
        below = any(name.startswith(f"{path}/") for name in self.objects)
        return pafs.FileInfo(path, pafs.FileType.Directory if below else pafs.FileType.NotFound)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self._call("list")
        return [self._info(n) for n in self.objects if n.startswith(f"{selector.base_dir}/")]

    def open_input_stream(self, path: str) -> pa.NativeFile:
        self._call("get")
        self.opened.append(path)
        if path not in self.objects:
            raise FileNotFoundError(2, "no such object", path)
        return pa.PythonFile(_Read(self, self.objects[path]), mode="r")

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        self._call("put")
        return pa.PythonFile(_Put(self, path), mode="w")

    def delete_file(self, path: str) -> None:
        self._call("delete")
        del self.objects[path]

    def _not_there(self, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _not_there
    move = copy_file = open_append_stream = _not_there


class _Read(io.BytesIO):
    def __init__(self, store: Store, data: bytes) -> None:
        super().__init__(data)
        self._store = store

    def read(self, size: int | None = -1) -> bytes:
        self._store._call("read")
        return super().read(size)


class _Put(io.BytesIO):
    """There once it is closed."""

    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self._store, self._path = store, path

    def close(self) -> None:
        if not self.closed:
            self._store._call("close")
            self._store.objects[self._path] = self.getvalue()
        super().close()
