"""Ledger: what an output folder holds, and what may be added to it.

    OUT/<unit>.parquet               the unit's table; its footer says which job and input it answers
    OUT/_manifest/<unit>.json        the record that makes the unit committed, written after its table
    OUT/_manifest/<unit>.members     a unit of loose files: which, fixed before they are read, and what they were;
                                     a unit of a text table: which rows
    OUT/_manifest/_job.json          the settings that every table in OUT was answered under
    OUT/_manifest/_overwriting.json  stands while `--overwrite` is at work: tables older than it are open
    OUT/_manifest/_moving.json       stands while rows go from older units' tables to a new one's (standing.py)
    OUT/_manifest/_owner.json        the run that is writing now (owner.py)
    OUT/_manifest/_parts/            rows of open units (parts.py)

Records and tables are written whole (storage.write_whole), tables first. A table whose record a
kill prevented is adopted if its footer fits. A record whose table is not there, or has another
size, counts for nothing. Reading a ledger changes nothing in the folder; `begin` is the first write.
Runs in the driver only.
"""

import base64
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.errors import OutputConflict, first_line
from llava_batch.patience import BRIEF, Patience
from llava_batch.storage import (
    TEMPORARY,
    Location,
    delete_file,
    list_files,
    read_bytes,
    write_whole,
)
from llava_batch.unit import Stamp, Unit
from llava_batch.write.membership import Membership
from llava_batch.write.record import Held, Record
from llava_batch.write.unit_table import decoded, encoded, origin, origin_of

_READS_AT_ONCE = 16
_OVERWRITING = "_overwriting.json"
_MOVING = "_moving.json"
PARTS = "_manifest/_parts/"
_NEVER = 2**63 - 1


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
        self.records: dict[str, Record] = {}
        self.keep: pa.Schema | None = None
        self.recasting = False
        self.is_moving = False
        self.parts: list[str] = []
        self._members: dict[str, Membership] = {}
        self._job: bytes | None = None
        self._sizes: dict[str, int] = {}
        self._hashes: dict[str, str] = {}
        self._written: dict[str, int] = {}
        self._overwriting: int | None = None
        self._counts_since = 0
        self._leftovers: list[str] = []
        self._retired: list[Record] = []
        self._noted: list[Unit] = []
        self._limited: list[str] = []
        self._looked_into: set[str] = set()
        self._adopted: dict[str, Record] = {}
        self._by_input: dict[tuple[str, str], int] | None = None
        self._units_of: dict[str, list[str]] | None = None

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
        records = []
        for info in self.patience.keep_trying(lambda: list_files(self.out)):
            name = info.path[len(self.out.path) + 1 :]
            if name.rpartition("/")[2].startswith(TEMPORARY):
                self._leftovers.append(info.path)
            elif name.startswith(PARTS):
                self.parts.append(info.path)
            elif not name.startswith("_manifest/"):
                self._sizes[name] = info.size
                self._written[name] = info.mtime_ns or 0
            elif name == f"_manifest/{_OVERWRITING}":
                self._overwriting = info.mtime_ns or 0
            elif name == f"_manifest/{_MOVING}":
                self.is_moving = True
            elif name.endswith((".json", ".members")) and not _is_side_file(name):
                records.append(name.removeprefix("_manifest/"))
        if overwrite:
            self._counts_since = self._overwriting or _NEVER  # 0: a store that tells no times
        held = self.patience.keep_trying(lambda: self._read_all(records))
        for name, data in zip(records, held, strict=True):
            self._take_in(name, data)
        self._limited = self._limited_tables()

    def _unreadable_job(self, error: Exception) -> OutputConflict:
        return OutputConflict(
            f"{self.out.shown}/_manifest/_job.json: does not say what was asked ({first_line(error)}); "
            "put it back as it was, give another --output, or --overwrite to answer all again"
        )

    def _read_all(self, names: list[str]) -> list[bytes | None]:
        paths = [self._path(name) for name in names]
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            return list(pool.map(lambda path: read_bytes(self.out.fs, path), paths))

    def answer_under(
        self, settings: dict[str, Any], fingerprint: str, version: int, *, as_before: bool
    ) -> None:
        """Count what was answered under `fingerprint` as answered; `as_before` where it is the one
        that the folder held, whose types of kept columns then stand."""
        self.settings, self.fingerprint, self.version = settings, fingerprint, version
        before = self.held if as_before else None
        self.keep = None if before is None else before.keep
        self.recasting = before is not None and before.recasting

    def _take_in(self, name: str, data: bytes | None) -> None:
        if name.endswith(".members"):
            self._members[name.removesuffix(".members")] = Membership.from_json(data)
        elif (record := Record.from_json(data)) is not None:
            self.records[record.unit] = record

    def members(self, base: str) -> dict[str, Sequence[str]]:
        """Memberships fixed by earlier runs for the loose files of a folder, by unit name."""
        return {
            unit: membership.members
            for unit, membership in sorted(self._members.items())
            if unit.rpartition("-")[0] == base and membership.members
        }

    def units_of(self, input: str) -> list[str]:
        """The units that were answered from what lies there."""
        if self._units_of is None:
            self._units_of = {}
            for record in self.records.values():
                self._units_of.setdefault(record.input, []).append(record.unit)
        return self._units_of.get(input, [])

    def rows(self, base: str) -> dict[str, tuple[int, int]]:
        """Which rows earlier runs gave to the units of a text table, by unit name."""
        return {
            unit: membership.rows
            for unit, membership in self._members.items()
            if unit.rpartition("-")[0] == base and membership.rows
        }

    def split_before(self, whole: Unit) -> int | None:
        """By which rules the units of a shard were made, where it was answered as it is now: 0 where it
        was one unit, None where it was not. A table whose record a kill prevented counts too."""
        held = self.records.get(whole.name)
        if held is not None and (held.input, held.source) == (whole.input, whole.source):
            return 0
        if self._by_input is None:
            self._by_input = {}
            for record in self.records.values():
                key = record.input, record.source
                self._by_input[key] = min(record.rules, self._by_input.get(key, record.rules))
        rules = self._by_input.get((whole.input, whole.source))
        if rules is None and held is None and (name := self.table_name(whole.name)) in self._sizes:
            said = origin_of(self.out.fs, f"{self.out.path}/{name}")
            return 0 if said.get("source") == whole.source else None
        return rules

    def stamps(self, unit: Unit) -> Sequence[Stamp | None]:
        """What is written of each of a unit's loose files; None where nothing is."""
        membership = self._members.get(unit.name)
        if membership is None or membership.members != unit.members:
            return (None,) * len(unit.members)
        return membership.stamps

    def answered(self, name: str) -> Record | None:
        """The record of a unit whose table stands, of this run's settings, whatever its input was."""
        record = self._adopted.get(name) or self.records.get(name)
        stands = (
            record is not None
            and self.is_of_this_run(record)
            and record.table_bytes == self._sizes.get(record.table)
            and self._counts(record.table)
        )
        return record if stands else None

    def _counts(self, table: str) -> bool:
        """Whether a table is not one that `--overwrite` is to replace."""
        return self._written.get(table, 0) >= self._counts_since

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
        if not self._remembers(unit):
            membership = self._members[unit.name] = Membership.of(unit)
            self._write(f"{unit.name}.members", membership.to_json())

    def retire(self, records: Iterable[Record]) -> None:
        """Have `begin` take these units out of the folder."""
        self._retired += records

    def holds_good_rows(self) -> bool:
        """Whether a row of any table or part has an answer, be its unit whole or not, of whatever
        settings."""
        records = (r for r in self.records.values() if r.table_bytes == self._sizes.get(r.table))
        told = {record.table: record.rows > sum(record.errors.values()) for record in records}
        beside = [f"{self.out.path}/{name}" for name in self._ours_but(told)]
        return any(told.values()) or any(map(self._has_good_row, [*beside, *self.parts]))

    def start_over(self) -> None:
        """Take what stands here as never answered, and have `begin` remove it."""
        self._limited = self._ours_but({record.table for record in self.records.values()})
        self._retired += self.records.values()
        self._leftovers += self.parts
        self.records, self.parts = {}, []

    def _ours_but(self, tables: Collection[str]) -> list[str]:
        """Tables of answers beside these: what a kill or `--limit` left, mostly."""
        names = (n for n in sorted(self._sizes) if n.endswith((".parquet", ".arrow")))
        return [
            name
            for name in names
            if name not in tables
            and "fingerprint" in origin_of(self.out.fs, f"{self.out.path}/{name}")
        ]

    def _has_good_row(self, path: str) -> bool:
        data = self.patience.keep_trying(lambda: read_bytes(self.out.fs, path)) or b""
        table = decoded(data, path.rpartition(".")[2])
        return table is not None and pc.any(pc.equal(table["status"], "ok")).as_py() is True

    @property
    def is_tidy(self) -> bool:
        """Whether there is nothing for `begin` to remove or to write down that cannot wait."""
        left = (self._leftovers, self._retired, self._limited, self._adopted, self.parts)
        return not (any(left) or self._is_given_up or self.is_moving)

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
            self._remove(record)
        for name in self._limited:
            self._delete(f"{self.out.path}/{name}")
            del self._sizes[name]
        for record in self._adopted.values():
            self.commit(record)
        opened = (u for u in units if (u.members or u.numbers) and self.answered(u.name) is None)
        for unit in (*opened, *self._noted):
            self.remember(unit)

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
        name = self.table_name(unit)
        self._delete(f"{self.out.path}/{name}")
        self._sizes.pop(name, None)

    def of_this_run(self) -> list[Record]:
        """Records of this run's settings that stay, also where a kill kept one from knowing its table's
        size."""
        retired = {record.unit for record in self._retired}
        ours = (r for n, r in sorted(self.records.items()) if n not in retired)
        return [r for r in ours if r.fingerprint == self.fingerprint]

    def replace(self, record: Record, table: pa.Table) -> None:
        """Put `table` in the place of the unit's, which says the same."""
        self._write_table(record.unit, table)
        size, hashed = self.table_size(record.unit), self.table_hash(record.unit)
        self.commit(replace(record, table_bytes=size, table_hash=hashed))

    def forget(self, record: Record) -> None:
        """Take a unit out of the folder, with what is written of its files."""
        self._delete(self._path(f"{record.unit}.members"))
        self._members.pop(record.unit, None)
        self._remove(record)

    def tables_without_record(self) -> list[str]:
        """Tables that a run which was killed, or had a `--limit`, left."""
        known = {record.table for record in self.records.values()}
        return sorted(n for n in self._sizes.keys() - known if n.endswith((".parquet", ".arrow")))

    def end_recasting(self) -> None:
        """All tables have the types of `keep`."""
        self.recasting = False
        if self.keep is not None:
            self._write_job(self.keep)

    def finish(self) -> None:
        """Everything was answered: the next `--overwrite` is another one."""
        if self._counts_since:
            self._delete(self._path(_OVERWRITING))

    def standing(self) -> dict[str, str]:
        """The units whose answers stand in the folder, of this run's input or not, each with the
        fingerprint of the input that they answer."""
        return {record.unit: record.source for record in self.standing_records()}

    def standing_records(self) -> list[Record]:
        """The records of `standing`, by the names of their units."""
        ours = (r for _, r in sorted(self.records.items()) if r.fingerprint == self.fingerprint)
        return [r for r in ours if r.table_bytes == self._sizes.get(r.table)]

    def table_name(self, unit: str) -> str:
        return f"{unit}.{self.format}"

    def table_size(self, unit: str) -> int:
        """Bytes of the unit's table, as last seen or written."""
        return self._sizes[self.table_name(unit)]

    def table_hash(self, unit: str) -> str:
        """sha256 of the unit's table, as last read or written."""
        return self._hashes[self.table_name(unit)]

    def read_table(self, unit: str) -> pa.Table | None:
        """The unit's table, or None where there is none that reads."""
        # All bytes first: what the storage does not give is raised, what does not parse is not there.
        path = f"{self.out.path}/{self.table_name(unit)}"
        data = self.patience.keep_trying(lambda: read_bytes(self.out.fs, path))
        if data is None:
            return None
        self._hashes[self.table_name(unit)] = sha256(data).hexdigest()
        return decoded(data, self.format)

    def write_table(self, unit: Unit, table: pa.Table) -> None:
        """Serialise `table` in memory, then put it in place at once."""
        self._write_table(unit.name, table)

    def _write_table(self, unit: str, table: pa.Table) -> None:
        name, data = self.table_name(unit), encoded(table, self.format)
        write_whole(self.out.fs, f"{self.out.path}/{name}", data, self.patience)
        self._sizes[name] = data.size
        self._hashes[name] = sha256(data).hexdigest()

    def commit(self, record: Record) -> None:
        """The unit is answered: from here on it is never read again."""
        held = self.records.get(record.unit)
        if held is not None and held.table != record.table:  # of another format, overwritten
            self._delete(f"{self.out.path}/{held.table}")
        self._write(f"{record.unit}.json", record.to_json())
        self.records[record.unit] = record

    def footer(self, unit: Unit, *, complete: bool) -> dict[str, str]:
        """What a table's schema metadata says of its origin."""
        return {
            "llava_batch.fingerprint": self.fingerprint,
            "llava_batch.source": unit.source,
            "llava_batch.complete": str(complete).lower(),
            "llava_batch.rules": str(unit.rules),
            **({"llava_batch.deleted": deleted} if (deleted := self.deleted_in(unit)) else {}),
        }

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
        there = name in self._sizes and self._counts(name) and unit.name not in self._looked_into
        self._looked_into.add(unit.name)
        table = self.read_table(unit.name) if there else None
        if table is None:
            return None
        found = origin(table.schema)
        before = self.answered(unit.name)
        fits = found.get("fingerprint") == self.fingerprint and found.get("complete") == "true"
        if unit.row_groups is not None and "rules" not in found:
            fits = False  # it may hold another run of the file's rows
        if not fits or (before is not None and before.source == found["source"]):
            return None
        record = record_of(self, replace(unit, source=found["source"]), table, int(found["images"]))
        record = replace(record, deleted=found.get("deleted", ""))
        if before is not None:
            record = replace(record, input=before.input)
        held = self.records.get(unit.name)
        if held is None or held.table == record.table:
            self.records[unit.name] = record
        self._adopted[unit.name] = record
        return record

    def _remembers(self, unit: Unit) -> bool:
        """Whether there is nothing to write down of a unit's files, or nothing that is known."""
        membership = Membership.of(unit)
        known = unit.numbers is not None or membership.source == unit.source
        return not known or self._members.get(unit.name) == membership

    def _limited_tables(self) -> list[str]:
        """Tables that an earlier `--limit` run left: they have no record, so no run would replace one
        whose unit it does not answer."""
        committed = {
            r.table for r in self.records.values() if r.table_bytes == self._sizes.get(r.table)
        }
        tables = (n for n in self._sizes.keys() - committed if n.endswith((".parquet", ".arrow")))
        found = ((n, origin_of(self.out.fs, f"{self.out.path}/{n}")) for n in sorted(tables))
        return [name for name, said in found if said.get("complete") == "false"]

    def _remove(self, record: Record) -> None:
        """Take a unit out of the folder; its record last, so that a kill in between is found again."""
        self._delete(f"{self.out.path}/{record.table}")
        self._delete(self._path(f"{record.unit}.json"))
        self.records.pop(record.unit, None)

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
        return self.patience.keep_trying(lambda: read_bytes(self.out.fs, self._path(name)))

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.out.fs, self._path(name), data, self.patience)

    def _delete(self, path: str) -> None:
        self.patience.keep_trying(lambda: delete_file(self.out.fs, path))


def _is_side_file(name: str) -> bool:
    return name.rpartition("/")[2].startswith("_")


def record_of(ledger: Ledger, unit: Unit, table: pa.Table, num_images: int) -> Record:
    """The record for `table` as the whole answer to `unit`."""
    errors: dict[str, int] = {}
    for code in table["error_code"].to_pylist():
        if code is not None:
            errors[code] = errors.get(code, 0) + 1
    return Record(
        unit=unit.name,
        table=ledger.table_name(unit.name),
        table_bytes=ledger.table_size(unit.name),
        table_hash=ledger.table_hash(unit.name),
        fingerprint=ledger.fingerprint,
        input=unit.input,
        source=unit.source,
        rows=table.num_rows,
        images=num_images,
        errors=dict(sorted(errors.items())),
        rules=unit.rules,
        deleted=ledger.deleted_in(unit),
    )
