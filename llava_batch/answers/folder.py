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

_SUFFIXES = (".parquet", ".arrow")
_NEEDED = ({"id", "status", "answer"}, {"id", "status", "conversations"})
"""The columns that make a table one of answers, or of the instructions made from them."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The tables of one output folder, sorted by path; `schema` is the first one's, with the run's
    model, prompt and settings in its metadata."""

    location: Location
    paths: tuple[str, ...]
    schema: pa.Schema

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The answer rows as dictionaries, in the order of units and rows; all columns or some."""
        for _, rows in self.tables(columns):
            yield from rows

    def tables(
        self, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
        """Each table's path below the folder, with its rows."""
        for path in self.paths:
            batches = _batches(self.location.fs, path, columns)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield path[len(self.location.path) + 1 :], rows

    def run(self) -> dict[str, Any]:
        """What `_run.json` says of the run; empty where there is none."""
        data = read_bytes(self.location.fs, f"{self.location.path}/_run.json")
        return json.loads(data) if data else {}


def open_answers(text: str) -> Answers:
    """The answers in an output folder, or in one table of it; `text` is a path or a URI.

    Raises:
        UsageError: there is no table, or the tables are not answers.
    """
    location = locate(text)
    if location.info().type == pafs.FileType.File:
        paths = [location.path]
        location = Location(location.fs, location.path.rpartition("/")[0], location.shown)
    else:
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


def _batches(
    fs: pafs.FileSystem, path: str, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    with fs.open_input_file(path) as file:
        if path.endswith(".parquet"):
            wanted = None if columns is None else list(columns)
            yield from pq.ParquetFile(file).iter_batches(batch_size=4096, columns=wanted)
            return
        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            yield batch if columns is None else batch.select(list(columns))
