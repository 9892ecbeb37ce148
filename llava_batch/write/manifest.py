"""Manifest: what the folder's records and memberships say, one a unit, in single files or in the index.

    OUT/_manifest/<unit>.json        the record that makes the unit committed (`record.py`)
    OUT/_manifest/<unit>.members     which loose files, or rows, the unit is made of (`membership.py`)
    OUT/_manifest/_index/            what was gathered of both (`index.py`)

Each is written as a single file, at once. Many of them are gathered from time to time: first the index is
written, then the single files go; a kill in between leaves what was said twice, and never less. While there is
an index, what goes is said by a single file too, that says so. Runs in the driver, on one thread.
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llava_batch.errors import OutputConflict
from llava_batch.patience import Patience
from llava_batch.storage import Location, delete_file, read_bytes, write_whole
from llava_batch.write.index import INDEX, SUFFIX, is_index, number_of, packed, unpacked
from llava_batch.write.membership import Membership
from llava_batch.write.record import Record
from llava_batch.write.sweeper import Sweeper

GATHER_FILES = 256
"""Single files from which on they are gathered while a run goes on."""
KEEP_FILES = 32
"""Single files that are left where they are when a run ends."""
INDEX_FILES = 16
"""Files of the index from which on they become one."""

_READS_AT_ONCE = 64
_READ_OF_A_TIME = 4096
"""Single files that are held as they were read."""
_REST_S = 120.0
"""A hundred thousand files of an older version go in that time."""
_NO_RECORD, _NO_MEMBERS = b"null\n", b"[]\n"


class Vanished(Exception):
    """A file that was listed is not there: another run gathered, and what it said is elsewhere now."""


class Manifest:
    """The records and memberships of one folder, by unit."""

    def __init__(self, out: Location, patience: Patience) -> None:
        self._out, self._patience = out, patience
        self._clear()
        self._in_flight: set[str] = set()
        self._sweeper = Sweeper(out.fs)

    def _clear(self) -> None:
        self.records: dict[str, Record] = {}
        self.members: dict[str, Membership] = {}
        self._single: dict[str, None] = {}
        self._index: list[str] = []
        self._outdated: list[str] = []
        self._unknown: list[dict[str, Any]] = []

    def load(self, names: Sequence[str]) -> None:
        """Read the files of these names below `_manifest/`; others than its own are left alone.

        Raises:
            Vanished: one of them is not there any more.
            OutputConflict: a file of the index does not read.
        """
        self._clear()
        index = sorted((n for n in names if is_index(n)), key=lambda n: (number_of(n), n))
        for name, data in zip(index, self._read_all(index), strict=True):
            self._take_in_index(name, data)
        single = sorted(n for n in names if n.endswith((".json", ".members")) and not _is_side(n))
        for first in range(0, len(single), _READ_OF_A_TIME):
            some = single[first : first + _READ_OF_A_TIME]
            for name, data in zip(some, self._read_all(some), strict=True):
                self._take_in(name, data)

    @property
    def is_tidy(self) -> bool:
        """Whether there is nothing to gather yet."""
        return len(self._single) < GATHER_FILES and not self._outdated

    def put(self, record: Record) -> None:
        """Say that the unit is committed."""
        self.will_put(record.unit)
        self.put_file(record, self._patience)
        self.took(record.unit, record)

    def will_put(self, unit: str) -> None:
        """`put_file` comes for this unit, and then `took`: meanwhile its file is not gathered."""
        self._sweeper.spare(self._path(f"{unit}.json"))
        self._in_flight.add(f"{unit}.json")

    def put_file(self, record: Record, patience: Patience) -> None:
        """Write the file of a record, and no more, on any thread."""
        path = self._path(f"{record.unit}.json")
        write_whole(self._out.fs, path, record.to_json(), patience)

    def took(self, unit: str, record: Record | None) -> None:
        """What came of `will_put`; None: it failed, and the file is what it was."""
        self._in_flight.discard(f"{unit}.json")
        if record is not None:
            self.records[unit] = record
            self._single[f"{unit}.json"] = None

    def remove(self, unit: str) -> None:
        """Say that the unit is not committed any more."""
        self._remove(f"{unit}.json", _NO_RECORD)
        self.records.pop(unit, None)

    def remember(self, memberships: dict[str, Membership]) -> None:
        """Write down what these units are made of, each by itself or, of many, in one."""
        self.members |= memberships
        # A single file has the last word: where there is one, it says the new.
        apart = {u: m for u, m in memberships.items() if f"{u}.members" in self._single}
        if len(memberships) - len(apart) >= GATHER_FILES:
            self._write_index(memberships.keys() - apart.keys(), whole=False, gone=())
        else:
            apart = memberships
        for unit, membership in apart.items():
            self._write(f"{unit}.members", membership.to_json())

    def forget_members(self, unit: str) -> None:
        """Take out what is written of a unit's files."""
        self._remove(f"{unit}.members", _NO_MEMBERS)
        self.members.pop(unit, None)

    def gather(self, least: int | None = None, *, whole: bool = False) -> None:
        """Put what single files say into the index, where there are so many; with `whole`, or of so many
        files, the index becomes one file, which speaks of no unit that is gone."""
        whole = whole and bool(self._index or self._outdated)
        gone = [name for name in self._single if name not in self._in_flight]
        if len(gone) < (GATHER_FILES if least is None else least) and not whole:
            return
        whole = whole or len(self._index) >= INDEX_FILES - 1
        units = {*self.records, *self.members} if whole else {*map(_unit_of, gone)}
        self._write_index(units, whole=whole, gone=gone)

    def _write_index(self, units: Iterable[str], *, whole: bool, gone: Sequence[str]) -> None:
        """One more file of the index; what it makes needless goes after it, `gone` too."""
        lines = [*map(self._line, sorted(units)), *(self._unknown if whole else ())]
        number = max(map(number_of, (*self._index, *self._outdated)), default=0) + 1
        name = f"{INDEX}{number:08d}-{secrets.token_hex(4)}{SUFFIX}"
        data = packed(lines, is_whole=whole)
        write_whole(self._out.fs, self._path(name), data, self._patience)
        gone = [*self._outdated, *(self._index if whole else ()), *gone]
        self._index = [name] if whole else [*self._index, name]
        self._outdated = []
        for single in gone:
            self._single.pop(single, None)
        self._sweeper.sweep(map(self._path, gone))

    def rest(self) -> None:
        """The run ends: gather what is more than a few single files, and have what is swept be swept."""
        self.gather(KEEP_FILES)
        self._sweeper.rest(_REST_S)

    def read(self, name: str) -> bytes | None:
        return self._patience.keep_trying(lambda: read_bytes(self._out.fs, self._path(name)))

    def _take_in_index(self, name: str, data: bytes) -> None:
        try:
            self._take_in_lines(name, *unpacked(data))
        except ValueError as error:
            raise OutputConflict(
                f"{self._out.shown}/_manifest/{name}: does not read ({error}); put it back as it was, or "
                "delete it: each table then says itself what it answers, which takes a read a table"
            ) from None

    def _take_in_lines(self, name: str, is_whole: bool, lines: Iterable[dict[str, Any]]) -> None:
        if is_whole:
            outdated = [*self._outdated, *self._index]
            self._clear()
            self._outdated = outdated
        self._index.append(name)
        for line in lines:
            self._take_in_line(line)

    def _take_in_line(self, line: dict[str, Any]) -> None:
        unit = line["unit"]
        if "record" in line:
            self.records.pop(unit, None)
            if line["record"] is not None:
                record = Record.of(line["record"])
                if record is None or record.unit != unit:
                    self._unknown.append({"unit": unit, "record": line["record"]})
                else:
                    self.records[record.unit] = record
        if "members" in line:
            self.members.pop(unit, None)
            if line["members"] is not None:
                self.members[unit] = Membership.of_said(line["members"])

    def _take_in(self, name: str, data: bytes) -> None:
        """A single file's word, which is the last."""
        unit = _unit_of(name)
        if name.endswith(".members"):
            self.members.pop(unit, None)
            if data != _NO_MEMBERS:
                self.members[unit] = Membership.from_json(data)
        else:
            record = Record.from_json(data)
            if record is None and data != _NO_RECORD:
                return  # none of ours, or of a version that this one does not know
            if record is not None and record.unit != unit:
                return  # a copy under another name
            self.records.pop(unit, None)
            if record is not None:
                self.records[unit] = record
        self._single[name] = None

    def _line(self, unit: str) -> dict[str, Any]:
        """All that is known of a unit, to stand in the index."""
        record, members = self.records.get(unit), self.members.get(unit)
        return {
            "unit": unit,
            "record": None if record is None else record.said(),
            "members": None if members is None else json.loads(members.to_json()),
        }

    def _read_all(self, names: Sequence[str]) -> Iterable[bytes]:
        def read(name: str) -> bytes:
            data = self.read(name)
            if data is None:
                raise Vanished(name)
            return data

        if not names:
            return []
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            return [*pool.map(read, names)]

    def _remove(self, name: str, said: bytes) -> None:
        if self._index:
            self._write(name, said)
        else:
            path = self._path(name)
            self._patience.keep_trying(lambda: delete_file(self._out.fs, path))
            self._single.pop(name, None)

    def _write(self, name: str, data: bytes) -> None:
        self._sweeper.spare(self._path(name))
        write_whole(self._out.fs, self._path(name), data, self._patience)
        self._single[name] = None

    def _path(self, name: str) -> str:
        return f"{self._out.path}/_manifest/{name}"


def _unit_of(name: str) -> str:
    return name.rpartition(".")[0]


def _is_side(name: str) -> bool:
    return name.rpartition("/")[2].startswith("_")
