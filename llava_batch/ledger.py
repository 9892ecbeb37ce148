"""Ledger: what an output folder holds, and what may be added to it.

    OUT/<unit>.parquet               the unit's table; its footer says which job and input it answers
    OUT/_manifest/<unit>.json        the record that makes the unit committed, written after its table
    OUT/_manifest/<unit>.members     a unit of loose files: which files, fixed before they are read
    OUT/_manifest/_job.json          the settings that every table in OUT was answered under
    OUT/_manifest/_owner.json        the run that is writing now, with a heartbeat

Records and tables are written whole (storage.write_whole), tables first. A table whose record a
kill prevented is adopted if its footer fits. Runs in the driver only.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import OutputConflict
from llava_batch.job import fingerprint, flag_name
from llava_batch.read.units import Unit
from llava_batch.storage import Location, list_files, read_bytes, write_whole

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A run that has not written its heartbeat for so long is taken for dead."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One committed unit, as `_manifest/<unit>.json` says it."""

    unit: str
    table: str
    fingerprint: str
    source: str
    rows: int
    images: int
    errors: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return (json.dumps(self.__dict__, indent=1, sort_keys=True) + "\n").encode()


class Ledger:
    """The state of one output folder. `open` refuses a folder that holds another run's answers."""

    def __init__(self, out: Location, format: str, settings: dict[str, Any]) -> None:
        self.out = out
        self.format = format
        self.settings = settings
        self.fingerprint = fingerprint(settings)
        self.records: dict[str, Record] = {}
        self.keep: list[tuple[str, str]] | None = None
        self._members: dict[str, tuple[str, ...]] = {}

    def load(self, *, overwrite: bool) -> None:
        """Read what the folder holds; with `overwrite`, units answered otherwise count as open.

        Raises:
            OutputConflict: answers of other settings or another format, named field by field.
        """
        held = read_bytes(self.out.fs, self._path("_job.json"))
        if held is not None:
            said = json.loads(held)
            if not overwrite:
                self._refuse_other_settings(said)
            if said["fingerprint"] == self.fingerprint:
                self.keep = said["keep"]
        for info in list_files(self.out.child("_manifest")):
            name = info.path[len(self._path("")) :]
            if name.endswith(".members"):
                data = read_bytes(self.out.fs, info.path) or b"[]"
                self._members[name.removesuffix(".members")] = tuple(json.loads(data))
            elif name.endswith(".json") and not name.rpartition("/")[2].startswith("_"):
                record = Record(**json.loads(read_bytes(self.out.fs, info.path) or b"{}"))
                self.records[record.unit] = record

    def members(self, base: str) -> dict[str, tuple[str, ...]]:
        """Memberships fixed by earlier runs for the loose files of a folder, by unit name."""
        return {
            unit: members
            for unit, members in sorted(self._members.items())
            if unit.rpartition("-")[0] == base
        }

    def is_committed(self, unit: Unit) -> bool:
        """Whether `unit` was answered as asked, from the input as it is now."""
        record = self.records.get(unit.name)
        if record is None:
            return self._adopt(unit)
        return record.fingerprint == self.fingerprint and record.source == unit.source

    def begin(self, units: Iterable[Unit], keep: pa.Schema) -> None:
        """Write down the job and the members of loose units, before anything is answered."""
        self.keep = [(f.name, str(f.type)) for f in keep]
        said = {"fingerprint": self.fingerprint, "format": self.format, "keep": self.keep,
                "settings": self.settings}  # fmt: skip
        self._write("_job.json", (json.dumps(said, indent=1, sort_keys=True) + "\n").encode())
        for unit in units:
            if unit.kind == "files" and self._members.get(unit.name) != unit.members:
                self._write(f"{unit.name}.members", json.dumps(unit.members).encode())

    def table_name(self, unit: str) -> str:
        return f"{unit}.{self.format}"

    def read_table(self, unit: str) -> pa.Table | None:
        """The unit's table, or None where there is none that reads."""
        path = f"{self.out.path}/{self.table_name(unit)}"
        try:
            with self.out.fs.open_input_file(path) as file:
                if self.format == "arrow":
                    return pa.ipc.open_file(file).read_all()
                return pq.read_table(file)
        except (FileNotFoundError, pa.ArrowInvalid):
            return None

    def write_table(self, unit: Unit, table: pa.Table) -> None:
        """Serialise `table` in memory, then put it in place at once."""
        sink = pa.BufferOutputStream()
        if self.format == "arrow":
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        else:
            pq.write_table(table, sink, compression="zstd")
        path = f"{self.out.path}/{self.table_name(unit.name)}"
        write_whole(self.out.fs, path, sink.getvalue())

    def commit(self, record: Record) -> None:
        """The unit is answered: from here on it is never read again."""
        self._write(f"{record.unit}.json", record.to_json())
        self.records[record.unit] = record

    def footer(self, unit: Unit, *, complete: bool) -> dict[str, str]:
        """What a table's schema metadata says of its origin."""
        return {
            "llava_batch.fingerprint": self.fingerprint,
            "llava_batch.source": unit.source,
            "llava_batch.complete": str(complete).lower(),
        }

    def _adopt(self, unit: Unit) -> bool:
        """Commit a whole table that fits, left by a kill between table and record."""
        table = self.read_table(unit.name)
        if table is None:
            return False
        found = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        wanted = self.footer(unit, complete=True)
        if any(found.get(name) != value for name, value in wanted.items()):
            return False
        self.commit(record_of(self, unit, table, int(found["llava_batch.images"])))
        return True

    def _refuse_other_settings(self, said: dict[str, Any]) -> None:
        if said["format"] != self.format:
            raise OutputConflict(
                f"--format {self.format}: {self.out.shown} holds {said['format']} tables; "
                "give that format or another --output"
            )
        held = said["settings"]
        changed = [
            f"{flag_name(name)} was {held.get(name)!r}, is {self.settings.get(name)!r}"
            for name in sorted({*held, *self.settings})
            if held.get(name) != self.settings.get(name)
        ]
        if changed:
            raise OutputConflict(
                f"{self.out.shown} holds answers of another run: {'; '.join(changed)}; "
                "give another --output, or --overwrite to replace them"
            )

    def _path(self, name: str) -> str:
        return f"{self.out.path}/_manifest/{name}"

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.out.fs, self._path(name), data)


def record_of(ledger: Ledger, unit: Unit, table: pa.Table, num_images: int) -> Record:
    """The record for `table` as the whole answer to `unit`."""
    errors: dict[str, int] = {}
    for code in table["error_code"].to_pylist():
        if code is not None:
            errors[code] = errors.get(code, 0) + 1
    return Record(
        unit=unit.name,
        table=ledger.table_name(unit.name),
        fingerprint=ledger.fingerprint,
        source=unit.source,
        rows=table.num_rows,
        images=num_images,
        errors=dict(sorted(errors.items())),
    )


class Ownership:
    """Keeps a second run off the output folder while this one writes; a context manager.

    A heartbeat file, so it works on every filesystem; a run that died leaves one that goes stale, or
    whose process is seen to be gone where it ran on this host.
    """

    def __init__(self, out: Location) -> None:
        self._fs, self._path = out.fs, f"{out.path}/_manifest/_owner.json"
        self._shown = out.shown
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Ownership":
        held = read_bytes(self._fs, self._path)
        if held and self._lives(json.loads(held)):
            other = json.loads(held)
            raise OutputConflict(
                f"--output {self._shown}: a run is writing there (process {other['pid']} on "
                f"{other['host']}); wait for it, or give another --output"
            )
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._fs.delete_file(self._path)

    def _lives(self, other: dict[str, Any]) -> bool:
        if other["host"] == self._me["host"]:
            return other["pid"] != self._me["pid"] and _process_lives(other["pid"])
        return time.time() - other["beat"] < STALE_S

    def _write(self) -> None:
        write_whole(self._fs, self._path, json.dumps(self._me | {"beat": time.time()}).encode())

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._write()


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
