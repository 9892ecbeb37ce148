"""Ownership: keeps a second run off an output folder while one writes to it.

A heartbeat file, so it works on every filesystem, object stores too. There is no lock there that
could not be lost, so both sides look: a run that starts refuses while another lives, and one that
finds another's name in the file while it writes stops before its next commit; so does one that was asleep for
longer than others wait for it, and finds none. Answers are the same whoever writes them, so the moment between
costs work and never rows.
"""

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from llava_batch.errors import OutputConflict
from llava_batch.patience import BRIEF, Patience
from llava_batch.storage import Location, delete_file, read_bytes, write_whole

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A run that has not written its heartbeat for so long, and does not while watched, is dead."""

_ONCE = Patience(0.0)


class Ownership:
    """The output folder is this run's for the length of the block.

    A run that died is known at once where it ran on this machine, elsewhere after `STALE_S`. A storage
    that is away makes heartbeats late and ends nothing; `patience` is for giving the folder back.
    """

    def __init__(self, out: Location, patience: Patience = BRIEF) -> None:
        self._patience = patience
        self._fs, self._path = out.fs, f"{out.path}/_manifest/_owner.json"
        self._made = _missing_folders(out)
        self._shown = out.shown
        self._me = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(),
                    "token": secrets.token_hex(8), "started": time.time()}  # fmt: skip
        self._lost_to: dict[str, Any] | None = None
        """The run that has taken the folder; nothing of it where it has given it back."""
        self._beaten = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Ownership":
        other = BRIEF.keep_trying(self._read)
        if other and self._lives(other):
            raise self._conflict(other)
        BRIEF.keep_trying(self._write)
        BRIEF.keep_trying(self._look)
        self.check()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost_to is not None:
            return
        if exc[0] is None:
            self._patience.keep_trying(self._leave)
        else:
            with suppress(OSError):  # what ended the run is told; the file goes stale by itself
                self._leave()

    def check(self) -> None:
        """Raise OutputConflict if another run has taken the folder meanwhile."""
        if self._lost_to is None and self._is_late:
            with suppress(OSError):  # what is written next finds the storage away too
                self._look()
        if self._lost_to is not None:
            raise self._conflict(self._lost_to)

    def _leave(self) -> None:
        delete_file(self._fs, self._path)
        with suppress(OSError):  # the first that is not empty: something was written
            for folder in self._made:
                os.rmdir(folder)

    @property
    def _is_late(self) -> bool:
        """Whether others may have taken this run for dead."""
        return time.time() - self._beaten >= STALE_S

    def _conflict(self, other: dict[str, Any]) -> OutputConflict:
        if not other:
            return OutputConflict(
                f"--output {self._shown}: this run was asleep, and another had the folder meanwhile; run this again"
            )
        return OutputConflict(
            f"--output {self._shown}: a run is writing there (process {other['pid']} on "
            f"{other['host']}); wait for it, or give another --output; if it was killed, the folder "
            f"is free {STALE_S:g} s later"
        )

    def _lives(self, other: dict[str, Any]) -> bool:
        if other["machine"] == self._me["machine"] and not _process_lives(other["pid"]):
            return False
        if 0 <= time.time() - other["beat"] < STALE_S:
            return True
        time.sleep(
            2.5 * HEARTBEAT_S
        )  # its clock is wrong, or it is dead: see whether it still beats
        now = self._read()
        return now is not None and now["beat"] != other["beat"]

    def _look(self) -> None:
        """Note it if the file has become another's, or has been."""
        there = self._read()
        if there is None and self._is_late:
            self._lost_to = {}
        elif there is not None and there["token"] != self._me["token"]:
            self._lost_to = there

    def _beat(self) -> None:
        while self._lost_to is None and not self._stop.wait(HEARTBEAT_S):
            try:
                self._look()
                if self._lost_to is None:
                    self._write()
            except OSError:
                continue  # the storage may come back before the heartbeat is stale

    def _read(self) -> dict[str, Any] | None:
        try:
            said = json.loads(read_bytes(self._fs, self._path) or b"null")
        except ValueError:
            return None
        known = isinstance(said, dict) and {*self._me, "beat"} <= said.keys()
        return said if known else None

    def _write(self) -> None:
        said = json.dumps(self._me | {"beat": time.time()})
        write_whole(self._fs, self._path, said.encode(), _ONCE)
        self._beaten = time.time()


def _missing_folders(out: Location) -> list[str]:
    """The folders that the first write will make, innermost first; an object store has none."""
    path, missing = f"{out.path}/_manifest", []
    while out.is_local and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def _machine() -> str:
    """What two processes share exactly when they can see each other's ids."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _has_ended(pid)


def _has_ended(pid: int) -> bool:
    """Whether it is killed and only waits for whoever started it to ask how it ended (Linux)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return False
