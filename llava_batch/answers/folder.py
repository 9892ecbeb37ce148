"""A run's answers, read back: the tables of an output folder, in a fixed order, batch by batch.

Knows the folder's layout (side files begin with `_`; one format per folder) and nothing of what the
answers mean. Memory is bounded by one batch.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llava_batch.errors import UsageError, first_line
from llava_batch.storage import Location, list_files, locate, read_bytes

ANSWERS = "answers"
"""The folder of `instruct`'s output that holds answers, beside those of other tables."""

_SUFFIXES = (".parquet", ".arrow")
_BATCH_ROWS = 4096

AnswerRow = dict[str, Any]
"""A row of a table of answers, by column."""

Turn = dict[str, Any]
"""One of a row's `turns`: a question, its answer, and how the answer ended."""

_NEEDED = ({"id", "status", "answer"}, {"id", "status", "conversations"})
"""The columns that make a table one of answers, or of the instructions made from them."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The tables of one output folder, sorted by path; `schema` is the first one's, with the run's
    model, prompt and settings in its metadata."""

    location: Location
    paths: tuple[str, ...]
    schema: pa.Schema

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[AnswerRow]:
        """The answer rows as dictionaries, in the order of units and rows; all columns or some."""
        for _, rows in self.tables(columns):
            yield from rows

    def tables(
        self, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Iterator[AnswerRow]]]:
        """Each table's path below the folder, with its rows."""
        for path in self.paths:
            rows = (row for batch in self.batches(path, columns) for row in batch.to_pylist())
            yield path[len(self.location.path) + 1 :], rows

    def batches(self, path: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of the table at `path`, one of `paths`, at most `_BATCH_ROWS` at once where it is
        Parquet; all columns or some, in the order given.

        Raises:
            UsageError: the table lacks one of `columns`.
        """
        with self.location.fs.open_input_file(path) as file:
            if path.endswith(".parquet"):
                table = pq.ParquetFile(file)
                names = _named(path, table.schema_arrow, columns)
                yield from (
                    batch.select(names) for batch in table.iter_batches(_BATCH_ROWS, columns=names)
                )
                return
            reader = pa.ipc.open_file(file)
            names = _named(path, reader.schema, columns)
            yield from (reader.get_batch(i).select(names) for i in range(reader.num_record_batches))

    def run(self) -> dict[str, Any]:
        """What `_run.json` says of the run; empty where there is none."""
        data = read_bytes(self.location.fs, f"{self.location.path}/_run.json")
        return json.loads(data) if data else {}


def open_answers(text: str) -> Answers:
    """The answers in an output folder, or in one table of it; `text` is a path or a URI. Of what
    `instruct` made, the answers are those in its folder `answers`.

    Raises:
        UsageError: there is no table, or the tables are not answers.
    """
    location = locate(text)
    if location.info().type == pafs.FileType.File:
        paths = [location.path]
        location = Location(location.fs, location.path.rpartition("/")[0], location.shown)
    else:
        if holds_answers(location.child(ANSWERS)) and not holds_answers(location):
            location = location.child(ANSWERS)
        paths = [
            f.path for f in list_files(location) if _is_table(f.path[len(location.path) + 1 :])
        ]
    if not paths:
        raise UsageError(f"{location.shown}: holds no answers (no .parquet or .arrow table)")
    schema = _schema(location.fs, paths[0])
    if not any(needed <= set(schema.names) for needed in _NEEDED):
        raise UsageError(f"{location.shown}: {paths[0].rpartition('/')[2]} is no table of answers "
                         f"(its columns: {', '.join(schema.names)})")  # fmt: skip
    return Answers(location=location, paths=tuple(paths), schema=schema)


def holds_answers(folder: Location) -> bool:
    """Whether a run answered into this very folder, and not into one below it."""
    return bool(folder.child("_manifest").info().type == pafs.FileType.Directory)


def _is_table(relative: str) -> bool:
    hidden = any(part.startswith("_") for part in relative.split("/"))
    return relative.endswith(_SUFFIXES) and not hidden


def _schema(fs: pafs.FileSystem, path: str) -> pa.Schema:
    try:
        with fs.open_input_file(path) as file:
            if path.endswith(".parquet"):
                return pq.read_schema(file)
            return pa.ipc.open_file(file).schema
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)})") from None


def _named(path: str, schema: pa.Schema, columns: Sequence[str] | None) -> list[str]:
    """The names of the columns that are wanted of a table with this schema."""
    names = list(schema.names if columns is None else columns)
    lacking = [name for name in names if name not in schema.names]
    if lacking and "conversations" in schema.names:
        raise UsageError(
            f"{path}: holds instructions; give the folder of the answers they are from"
        )
    if lacking:
        raise UsageError(f"{path}: is no table of answers (without {', '.join(lacking)})")
    return names
