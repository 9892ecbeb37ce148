"""Sweeper: deletes files that nobody needs any more, some at a time, while other work goes on.

What it does not come to is left there: whoever finds it again has it swept again. A file that is about to be
written anew is spared.
"""

import atexit
import threading
from collections.abc import Iterable
from contextlib import suppress

import pyarrow.fs as pafs

_AT_ONCE = 32
_LAST_WORD_S = 30.0


class Sweeper:
    """The files of one storage that are to go."""

    def __init__(self, fs: pafs.FileSystem) -> None:
        self._fs = fs
        self._waiting: dict[str, None] = {}
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self._threads = 0

    def sweep(self, paths: Iterable[str]) -> None:
        """Have these files deleted, in the order given, as far as the process lives to see it."""
        with self._changed:
            self._waiting.update(dict.fromkeys(paths))
            wanted = min(_AT_ONCE, len(self._waiting))
            if wanted and not self._threads:
                atexit.register(
                    self.rest, 0.0
                )  # a thread of pyarrow's at the interpreter's end aborts it
            for _ in range(wanted - self._threads):
                self._threads += 1
                threading.Thread(target=self._run, name="sweeper", daemon=True).start()

    def spare(self, path: str) -> None:
        """From now on nothing is deleted at `path`: something new will be written there."""
        with self._changed:
            self._waiting.pop(path, None)
            self._changed.wait_for(lambda: path not in self._busy)

    def rest(self, wait_s: float) -> None:
        """Let it go on for so long at most, then have it end; nothing is being deleted afterwards, but by
        a storage that does not answer."""
        with self._changed:
            self._changed.wait_for(lambda: not self._threads, wait_s)
            self._waiting.clear()
            self._changed.wait_for(lambda: not self._threads, _LAST_WORD_S)
        atexit.unregister(self.rest)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._threads -= 1
                    self._changed.notify_all()
                    return
                path = next(iter(self._waiting))
                del self._waiting[path]
                self._busy.add(path)
            try:
                with suppress(OSError):  # it is there still, or was gone already
                    self._fs.delete_file(path)
            finally:
                with self._changed:
                    self._busy.discard(path)
                    self._changed.notify_all()
