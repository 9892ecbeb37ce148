"""Ledger: what an output folder holds, and what may be added to it.

    OUT/<unit>.parquet               the unit's table; its footer says which job and input it answers (unit_tables.py)
    OUT/_manifest/<unit>.json        the record that makes the unit committed, written after its table
    OUT/_manifest/<unit>.members     a unit of loose files: which, fixed before they are read, and what they were;
                                     a unit of a text table: which rows
    OUT/_manifest/_index/            many of both, gathered (manifest.py)
    OUT/_manifest/_job.json          the settings that every table in OUT was answered under
    OUT/_manifest/_overwriting.json  stands while `--overwrite` is at work: tables older than it are open
    OUT/_manifest/_moving.json       stands while rows go from older units' tables to a new one's (standing.py)
    OUT/_manifest/_owner.json        the run that is writing now (owner.py)
    OUT/_manifest/_parts/            rows of open units (parts.py)

Records and tables are written whole (storage.write_whole), tables first. A table whose record a
kill prevented is adopted if its footer fits (adopt.py), whatever has become of its input. A record whose table is not there, or has another
size, counts for nothing. Reading a ledger changes nothing in the folder; `begin` is the first write.
Runs in the driver only.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from llava_batch.errors import OutputConflict, first_line
from llava_batch.patience import BRIEF, Patience
from llava_batch.storage import TEMPORARY, Location, delete_file, list_files, write_whole
from llava_batch.unit import Stamp, Unit
from llava_batch.write.adopt import record_of_table
from llava_batch.write.before import Before
from llava_batch.write.manifest import Manifest, Vanished
from llava_batch.write.membership import Membership
from llava_batch.write.record import Held, Record
from llava_batch.write.unit_table import origin
from llava_batch.write.unit_tables import UnitTables

_OVERWRITING = "_overwriting.json"
_MOVING = "_moving.json"
PARTS = "_manifest/_parts/"
_NEVER = 2**63 - 1
_LISTINGS = 5
"""How often a folder is listed anew where another run gathers its records meanwhile."""


class Ledger:
    """The state of one output folder: `load` reads it, `answer_under` says how this run answers."""

    def __init__(self, out: Location, format: str, patience: Patience = BRIEF) -> None:
        self.out = out
        self.patience = patience
        self.format = format
        self.held: Held | None = None
        self.settings: dict[str, Any] = {}
        self.version = 0
        self.fingerprint = ""
        self.keep: pa.Schema | None = None
        self.recasting = False
        self.is_moving = False
        self.parts: list[str] = []
        self.tables = UnitTables(out, format, patience)
        self.manifest = Manifest(out, patience)
        self.before = Before(self.manifest, self.tables)
        self._job: bytes | None = None
        self._overwriting: int | None = None
        self._counts_since = 0
        self._leftovers: list[str] = []
        self._retired: list[Record] = []
        self._noted: list[Unit] = []
        self._limited: list[str] = []
        self._looked_into: set[str] = set()
        self._adopted: dict[str, Record] = {}

    @property
    def records(self) -> dict[str, Record]:
        """All records of the folder, by unit, of whatever settings."""
        return self.manifest.records

    def load(self, *, overwrite: bool = False) -> None:
        """Read what the folder holds; with `overwrite`, all units count as open but those that an
        `--overwrite` which was killed has answered already."""
        self._job = self._read("_job.json")
        if self._job is not None:
            try:
                self.held = Held.from_json(self._job)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                if not overwrite:
                    raise self._unreadable_job(error) from None
        for _ in range(_LISTINGS):
            try:
                self._load_files()
                break
            except Vanished as error:
                last = error
        else:
            raise OutputConflict(
                f"{self.out.shown}/_manifest/{last}: is listed and not there; another run may be at "
                "work in the folder: wait for it, then run this again"
            )
        if overwrite:
            self._counts_since = self._overwriting or _NEVER  # 0: a store that tells no times
        self._take_in_open_tables()

    def _load_files(self) -> None:
        names, tables = [], []
        self.parts, self._leftovers = [], []
        for info in self.patience.keep_trying(lambda: list_files(self.out)):
            name = info.path[len(self.out.path) + 1 :]
            if name.rpartition("/")[2].startswith(TEMPORARY):
                self._leftovers.append(info.path)
            elif name.startswith(PARTS):
                self.parts.append(info.path)
            elif not name.startswith("_manifest/"):
                tables.append((name, info))
            elif name == f"_manifest/{_OVERWRITING}":
                self._overwriting = info.mtime_ns or 0
            elif name == f"_manifest/{_MOVING}":
                self.is_moving = True
            else:
                names.append(name.removeprefix("_manifest/"))
        self.tables.listed(tables)
        self.manifest.load(names)

    def _unreadable_job(self, error: Exception) -> OutputConflict:
        return OutputConflict(
            f"{self.out.shown}/_manifest/_job.json: does not say what was asked ({first_line(error)}); "
            "put it back as it was, give another --output, or --overwrite to answer all again"
        )

    def answer_under(
        self, settings: dict[str, Any], fingerprint: str, version: int, *, as_before: bool
    ) -> None:
        """Count what was answered under `fingerprint` as answered; `as_before` where it is the one
        that the folder held, whose types of kept columns then stand."""
        self.settings, self.fingerprint, self.version = settings, fingerprint, version
        before = self.held if as_before else None
        self.keep = None if before is None else before.keep
        self.recasting = before is not None and before.recasting

    def stamps(self, unit: Unit) -> Sequence[Stamp | None]:
        """What is written of each of a unit's loose files; None where nothing is."""
        membership = self.manifest.members.get(unit.name)
        if membership is None or membership.members != unit.members:
            return (None,) * len(unit.members)
        return membership.stamps

    def answered(self, name: str) -> Record | None:
        """The record of a unit whose table stands, of this run's settings, whatever its input was."""
        record = self._adopted.get(name) or self.records.get(name)
        stands = (
            record is not None
            and self.is_of_this_run(record)
            and self.has_table(record)
            and self._counts(record.table)
        )
        return record if stands else None

    def _counts(self, table: str) -> bool:
        """Whether a table is not one that `--overwrite` is to replace."""
        return self.tables.written_ns(table) >= self._counts_since

    def is_of_this_run(self, record: Record) -> bool:
        """Whether it has this run's settings and format."""
        table = self.table_name(record.unit)
        return record.fingerprint == self.fingerprint and record.table == table

    def is_committed(self, unit: Unit) -> bool:
        """Whether `unit` was answered as asked, from the input as it is now."""
        record = self.answered(unit.name)
        if record is None or record.source != unit.source:
            record = self._adopt(unit) or record
        return record is not None and record.source == unit.source

    def note(self, unit: Unit) -> None:
        """Have `begin` write down what the loose files of a committed unit are, where that is not."""
        self._noted.append(unit)

    def remember(self, unit: Unit) -> None:
        """Write down which loose files a unit is made of and what they are, or which rows."""
        self.remember_all([unit])

    def remember_all(self, units: Iterable[Unit]) -> None:
        """`remember` of many."""
        news = [unit for unit in units if not self._remembers(unit)]
        self.manifest.remember({unit.name: Membership.of(unit) for unit in news})

    def retire(self, records: Iterable[Record]) -> None:
        """Have `begin` take these units out of the folder."""
        self._retired += records

    def holds_good_rows(self) -> bool:
        """Whether a row of any table or part has an answer, be its unit whole or not, of whatever
        settings."""
        records = filter(self.has_table, self.records.values())
        told = {record.table: record.rows > sum(record.errors.values()) for record in records}
        beside = [f"{self.out.path}/{name}" for name in self._ours_but(told)]
        return any(told.values()) or any(map(self.tables.has_good_row, [*beside, *self.parts]))

    def start_over(self) -> None:
        """Take what stands here as never answered, and have `begin` remove it."""
        self._limited = self._ours_but({record.table for record in self.records.values()})
        self._retired += self.records.values()
        self._leftovers += self.parts
        self.manifest.records, self.parts, self._adopted = {}, [], {}

    def has_table(self, record: Record) -> bool:
        """Whether the table that the record tells of stands."""
        return record.table_bytes == self.tables.sizes.get(record.table)

    def _ours_but(self, names: Iterable[str]) -> list[str]:
        """Tables of answers beside these: what a kill or `--limit` left, mostly."""
        return [n for n in self.tables.but([*names]) if "fingerprint" in self.tables.origin(n)]

    @property
    def is_tidy(self) -> bool:
        """Whether there is nothing for `begin` to remove or to write down that cannot wait."""
        left = (self._leftovers, self._retired, self._limited, self._to_record(), self.parts)
        return not (any(left) or self._is_given_up or self.is_moving) and self.manifest.is_tidy

    @property
    def was_cut_short(self) -> bool:
        """Whether a run that was killed left the folder between two states: types of kept columns, or
        an `--overwrite`, that it was to finish."""
        return self.recasting or self._is_given_up

    @property
    def _is_given_up(self) -> bool:
        """Whether an `--overwrite` was begun here that nobody goes on with."""
        return self._overwriting is not None and not self._counts_since

    def as_answered(self, unit: Unit) -> Unit:
        """The unit, its rows told apart by the rules that it was answered by."""
        record = self.records.get(unit.name)
        return unit if record is None else replace(unit, rules=record.rules)

    def begin(self, units: Iterable[Unit], keep: pa.Schema, *, recasting: bool = False) -> None:
        """Write down the job, the members of loose units and the rows of text tables' units, before anything is answered; `recasting`
        stands there until `end_recasting`.

        Raises:
            OutputConflict: another run began here after this one looked.
        """
        if self._read("_job.json") != self._job:
            raise OutputConflict(
                f"--output {self.out.shown}: another run began to write there; run this again"
            )
        self.keep, self.recasting = keep, recasting
        self._write_job(keep)
        if self._counts_since == _NEVER:
            self._write(_OVERWRITING, b"{}\n")
        elif self._is_given_up:
            self._delete(self._path(_OVERWRITING))  # what it did not replace stands
        units = [*units]
        for path in (*self._leftovers, *(() if units else self.parts)):
            self._delete(path)
        for record in self._retired:
            self._adopted.pop(record.unit, None)
            self._remove(record)
        for name in self._limited:
            self.tables.drop(name)
        for record in self._to_record():
            self.commit(record)
        self._adopted = {}
        opened = (u for u in units if (u.members or u.numbers) and self.answered(u.name) is None)
        self.remember_all([*opened, *self._noted])
        self.manifest.gather()

    def begin_move(self, said: bytes) -> None:
        """Write down that rows go from some units' tables to another's; see `standing`."""
        self._write(_MOVING, said)
        self.is_moving = True

    def moving(self) -> bytes | None:
        """What `begin_move` wrote, until `forget_move`."""
        return self._read(_MOVING) if self.is_moving else None

    def forget_move(self) -> None:
        self._delete(self._path(_MOVING))
        self.is_moving = False

    def remove(self, record: Record) -> None:
        """Take a unit out of the folder now."""
        self._remove(record)

    def remove_table(self, unit: str) -> None:
        """Take out a unit's table that no record tells of, if there is one."""
        self.tables.drop(self.table_name(unit))

    def of_this_run(self) -> list[Record]:
        """Records of this run's settings that stay, also where a kill kept one from knowing its table's
        size."""
        retired = {record.unit for record in self._retired}
        ours = (r for n, r in sorted(self.records.items()) if n not in retired)
        return [r for r in ours if r.fingerprint == self.fingerprint]

    def replace(self, record: Record, table: pa.Table) -> None:
        """Put `table` in the place of the unit's, which says the same."""
        self.tables.write(record.unit, table)
        size, hashed = self.tables.size(record.unit), self.tables.hash(record.unit)
        self.commit(replace(record, table_bytes=size, table_hash=hashed))

    def forget(self, record: Record) -> None:
        """Take a unit out of the folder, with what is written of its files."""
        self.manifest.forget_members(record.unit)
        self._remove(record)

    def tables_without_record(self) -> list[str]:
        """Tables that a run which was killed, or had a `--limit`, left."""
        return self.tables.but({record.table for record in self.records.values()})

    def end_recasting(self) -> None:
        """All tables have the types of `keep`."""
        self.recasting = False
        if self.keep is not None:
            self._write_job(self.keep)

    def finish(self) -> None:
        """Everything was answered: the next `--overwrite` is another one."""
        if self._counts_since:
            self._delete(self._path(_OVERWRITING))

    def rest(self) -> None:
        """Nothing more is answered in this run: what is left of its records in single files is gathered."""
        self.manifest.rest()

    def standing(self) -> dict[str, str]:
        """The units whose answers stand in the folder, of this run's input or not, each with the
        fingerprint of the input that they answer."""
        return {record.unit: record.source for record in self.standing_records()}

    def standing_records(self) -> list[Record]:
        """The records of `standing`, by the names of their units."""
        ours = (r for _, r in sorted(self.records.items()) if r.fingerprint == self.fingerprint)
        return [*filter(self.has_table, ours)]

    def table_name(self, unit: str) -> str:
        return self.tables.name(unit)

    def read_table(self, unit: str) -> pa.Table | None:
        """The unit's table, or None where there is none that reads."""
        return self.tables.read(unit)

    def commit(self, record: Record) -> None:
        """The unit is answered: from here on it is never read again."""
        self.will_put(record.unit)
        self.put_record(record, self.patience)
        self.took(record.unit, record, is_committed=True)

    def will_put(self, unit: str) -> None:
        """The unit's table and record are about to be written, on another thread perhaps; `took` says the end."""
        self.manifest.will_put(unit)

    def put_record(self, record: Record, patience: Patience) -> None:
        """Write a record, its table written, and nothing that the ledger knows: on any thread."""
        held = self.records.get(record.unit)
        if held is not None and held.table != record.table:  # of another format, overwritten
            self.tables.delete(held.table, patience)
        self.manifest.put_file(record, patience)

    def took(self, unit: str, record: Record | None, *, is_committed: bool = False) -> None:
        """What came of `will_put`: this table, its record written too where it `is_committed`; None: neither is
        known to be there."""
        if record is not None:
            self.tables.took(unit, record.table_bytes, record.table_hash)
        self.manifest.took(unit, record if is_committed else None)

    def footer(self, unit: Unit, *, complete: bool) -> dict[str, str]:
        """What a table's schema metadata says of its origin."""
        return {
            "llava_batch.fingerprint": self.fingerprint,
            "llava_batch.input": unit.input,
            "llava_batch.source": unit.source,
            "llava_batch.complete": str(complete).lower(),
            "llava_batch.rules": str(unit.rules),
            **({"llava_batch.deleted": deleted} if (deleted := self.deleted_in(unit)) else {}),
        }

    def record_of(
        self,
        unit: Unit,
        *,
        rows: int,
        images: int,
        errors: Mapping[str, int],
        size: int,
        hashed: str,
    ) -> Record:
        """The record for a table of so many rows, bytes and errors as the whole answer to `unit`."""
        return Record(
            unit=unit.name,
            table=self.table_name(unit.name),
            table_bytes=size,
            table_hash=hashed,
            fingerprint=self.fingerprint,
            input=unit.input,
            source=unit.source,
            rows=rows,
            images=images,
            errors=dict(sorted(errors.items())),
            rules=unit.rules,
            deleted=self.deleted_in(unit),
        )

    def deleted_in(self, unit: Unit) -> str:
        """The rows of a lake table's file that the unit's table lacks, as a record says them: those
        deleted now; where only some are answered again, those that were deleted when all were."""
        if unit.retry is not None:
            return self.records[unit.name].deleted
        return base64.b64encode(unit.deleted).decode()

    def _adopt(self, unit: Unit) -> Record | None:
        """The record of a whole table of this run's settings, where a kill between table and record
        left none, or an older one; whatever its input was."""
        name = self.table_name(unit.name)
        there = (
            name in self.tables.sizes and self._counts(name) and unit.name not in self._looked_into
        )
        self._looked_into.add(unit.name)
        table = self.read_table(unit.name) if there else None
        if table is None:
            return None
        found = origin(table.schema)
        before = self.answered(unit.name)
        if found.get("fingerprint") != self.fingerprint:
            return None
        if unit.row_groups is not None and "rules" not in found:
            return None  # it may hold another run of the file's rows
        if before is not None and before.source == found["source"]:
            return None
        record = record_of_table(
            table, unit=unit.name, name=name, size=self.tables.size(unit.name),
            hashed=self.tables.hash(unit.name), input=unit.input if before is None else before.input,
        )  # fmt: skip
        if record is None:
            return None
        held = self.records.get(unit.name)
        if held is None or held.table == record.table:
            self.records[unit.name] = record
        self._adopted[unit.name] = record
        return record

    def _remembers(self, unit: Unit) -> bool:
        """Whether there is nothing to write down of a unit's files, or nothing that is known."""
        membership = Membership.of(unit)
        known = unit.numbers is not None or membership.source == unit.source
        return not known or self.manifest.members.get(unit.name) == membership

    def _take_in_open_tables(self) -> None:
        """Tables without a record that stands: those that an earlier `--limit` run left are to go, for no run
        would replace one whose unit it does not answer; whole ones are taken for committed, whatever
        becomes of their input, for a reader sees their rows."""
        self._limited = []
        for name in self.tables.but(r.table for r in self.records.values() if self.has_table(r)):
            found = self.tables.origin(name)
            if found.get("complete") == "false":
                self._limited.append(name)
            elif found.get("complete") == "true" and "input" in found:
                self._adopt_table(name, found["input"])

    def _to_record(self) -> list[Record]:
        """What was adopted and is of this run: what is not counts here and is written down nowhere."""
        return [*filter(self.is_of_this_run, self._adopted.values())]

    def _adopt_table(self, name: str, input: str) -> None:
        unit = name.rpartition(".")[0]
        held = self.records.get(unit)
        table = None if held is not None and self.has_table(held) else self.tables.read_file(name)
        if table is None:
            return
        record = record_of_table(
            table, unit=unit, name=name, size=self.tables.sizes[name],
            hashed=self.tables.hash_of(name), input=input if held is None else held.input,
        )  # fmt: skip
        if record is not None:
            self.records[unit] = self._adopted[unit] = record

    def _remove(self, record: Record) -> None:
        """Take a unit out of the folder; its record last, so that a kill in between is found again."""
        self.tables.delete(record.table)
        self.manifest.remove(record.unit)

    def _write_job(self, keep: pa.Schema) -> None:
        said = Held(
            format=self.format,
            fingerprint=self.fingerprint,
            settings=self.settings,
            version=self.version,
            keep=keep,
            recasting=self.recasting,
        ).to_json()
        if said != self._job:
            self._write("_job.json", said)
            self._job = said

    def _path(self, name: str) -> str:
        return f"{self.out.path}/_manifest/{name}"

    def _read(self, name: str) -> bytes | None:
        return self.manifest.read(name)

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.out.fs, self._path(name), data, self.patience)

    def _delete(self, path: str) -> None:
        self.patience.keep_trying(lambda: delete_file(self.out.fs, path))
