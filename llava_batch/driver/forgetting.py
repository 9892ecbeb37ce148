"""Forget, from the input: which answers of a folder are of rows that `--input` no longer has.

A unit whose input is not among those given, and is still where it was, keeps its answers: it was not asked
about. Of a shard that is as it was when it was answered no row can be gone; one that changed is read
for its keys, and where it is damaged nothing is known of them, and nothing goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs

from llava_batch.answers import thumbnails
from llava_batch.driver.gone_from_tables import gone_from_table, table_input
from llava_batch.errors import RowError, UsageError, counted
from llava_batch.job import Job
from llava_batch.prompts.asks import prompt_columns
from llava_batch.read.columns import kept_names
from llava_batch.read.find import find
from llava_batch.read.kinds import read_rows
from llava_batch.read.lake.table import AsOf
from llava_batch.read.patterns import is_pattern
from llava_batch.read.reading import Reading
from llava_batch.read.walk import lies_in, real_path
from llava_batch.storage import Location, delete_file, locate
from llava_batch.unit import Unit
from llava_batch.write.forget import Forgetting, Names, forget, to_forget
from llava_batch.write.ledger import Ledger
from llava_batch.write.parts import drop_other_parts
from llava_batch.write.record import Record

REPORT = "_report.html"


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What a folder holds of rows that the input no longer has; nothing was changed yet."""

    forgettings: list[Forgetting]
    elsewhere: list[str]
    """Units whose input is not among those given, and is still there; they keep their answers."""
    moved: list[str]
    """Units whose input makes others now; the next run answers those."""
    unknown: list[str]
    """Units whose shard is damaged, so that nothing is known of its rows."""
    sources: dict[str, str]
    """The input's units, each with which rows it has (`Unit.as_read`)."""

    @property
    def rows(self) -> int:
        return sum(forgetting.rows for forgetting in self.forgettings)


def lost(ledger: Ledger, inputs: Sequence[str]) -> Lost:
    """Set what the folder holds against what `inputs` hold now. Changes nothing.

    Raises:
        UsageError: an input that cannot be read; tables that a run left without their records.
    """
    open_tables = ledger.tables_without_record()
    if open_tables:
        raise UsageError(
            f"{ledger.out.shown}: {counted(len(open_tables), 'table')} without a record, {open_tables[0]} first: a "
            "run was stopped there or had a --limit; run the job to its end first, or delete them"
        )
    found = find(
        inputs,
        ledger.before.members,
        ledger.before.split,
        rows=ledger.before.rows,
        answered=ledger.before.units_of,
        output=ledger.out,
        as_of=_as_of(ledger),
    )
    units = found.units
    tables = {table_input(table): table.units for table in found.tables}
    asked = _Asked(ledger, inputs, frozenset(unit.input for unit in units), frozenset(tables))
    forgettings = to_forget(ledger, units, is_gone=asked.is_gone, names_in=asked.names_in)
    for input, files in tables.items():
        of_it, moved = gone_from_table(ledger, input, files, ledger.settings.get("key_column"))
        forgettings += of_it
        asked.moved += moved
    return Lost(
        forgettings=forgettings,
        elsewhere=asked.elsewhere,
        moved=asked.moved,
        unknown=asked.unknown,
        sources={unit.name: unit.as_read for unit in units},
    )


def delete(ledger: Ledger, found: Lost) -> None:
    """Take it all out of the folder: of the pictures and the page first, so that a kill anywhere leaves
    the rows to be found again by the same call. Rows of units that a run left open go with them where
    their input changed; those units are answered anyway."""
    out = ledger.out
    drop_other_parts(ledger, found.sources)
    if not found.forgettings:
        return

    def goes(image: str) -> bool:
        return any(forgetting.takes(image) for forgetting in found.forgettings)

    ledger.patience.keep_trying(lambda: thumbnails.drop(out, goes))
    ledger.patience.keep_trying(lambda: delete_file(out.fs, f"{out.path}/{REPORT}"))
    for forgetting in found.forgettings:
        forget(ledger, forgetting)
    ledger.manifest.gather(whole=True)  # which names the gone no more
    ledger.rest()


@dataclass
class _Asked:
    """What `to_forget` asks of the input, and what could not be told."""

    ledger: Ledger
    inputs: Sequence[str]
    found: frozenset[str]
    """The inputs of the units that there are, as `Unit.input` has them."""
    tables: frozenset[str]
    """Those of them that are tables of the lake, which are asked by their rows."""
    elsewhere: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def is_gone(self, record: Record) -> bool:
        """Whether the unit's input is not there, and lies below one that was given or is nowhere."""
        if record.input in self.tables:
            return False
        if record.input in self.found:
            self.moved.append(record.unit)
            return False
        kind, _, path = record.input.partition(":")
        stores = [at for at in map(_root, self.inputs) if at.fs.type_name == kind]
        if any(lies_in(path, at.path) or lies_in(path, real_path(at)) for at in stores):
            return True
        there = [at.fs.get_file_info(path).type != pafs.FileType.NotFound for at in stores]
        if any(there) or not stores:  # of another store nothing can be asked
            self.elsewhere.append(record.unit)
            return False
        return True

    def names_in(self, unit: Unit) -> Names | None:
        """The names of a shard's images now, by the rules it was answered by."""
        names = set()
        for row in read_rows(self.ledger.as_answered(unit), self._reading()):
            if row.error is not None and row.error[0] == RowError.SHARD_DAMAGED:
                self.unknown.append(unit.name)
                return None
            names.add(row.name)
        return frozenset(names)

    def _reading(self) -> Reading:
        """As the folder's own settings have it, without columns."""
        known = ("image_column", "key_column", "max_image_bytes")
        settings = {n: self.ledger.settings[n] for n in known if n in self.ledger.settings}
        return Reading.of(Job(**settings), (), pa.schema([]))


def _as_of(ledger: Ledger) -> AsOf:
    """How the folder's own settings read tables of the lake, as of now."""
    said = ledger.settings
    names = ("prompt", "system", "suffix", "question_column")
    job = Job(**{name: said[name] for name in names if said.get(name)})
    columns = (*prompt_columns(job, None), *kept_names(said.get("keep", ())))
    return AsOf(
        image_column=said.get("image_column"),
        key_column=said.get("key_column"),
        columns=None if said.get("recipe") else columns,
    )


def _root(text: str) -> Location:
    """The folder or file below which an input lies; of a pattern, what stands before it."""
    at = locate(text)
    if not (is_pattern(at.path) or "{" in at.path):
        return at
    whole = at.path.split("/")
    fixed = next(n for n, part in enumerate(whole) if is_pattern(part) or "{" in part)
    path = "/".join(whole[:fixed]) or "/"
    return Location(at.fs, path, path)
