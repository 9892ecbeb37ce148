"""An Arrow IPC file → rows: a file of a dataset that Hugging Face's `save_to_disk` wrote, or one that is named.

`datasets` writes streams; files with a footer are read too. The image column and keys are as in a
Parquet file, keys that are numbers counted within the file. One record batch is in memory at once, as large as its writer
made it. A row whose values lie outside of their buffers is `shard_damaged`; where a batch does not read, or a stream
lacks its end, nobody knows how many rows follow, and one row says so.
"""

import json
from collections.abc import Iterator

import pyarrow as pa

from llava_batch.errors import UsageError
from llava_batch.read.image_column import find_image_column, find_key_column, names_images
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Row, damaged, missing
from llava_batch.read.storage_failed import is_damage, stored
from llava_batch.read.table_rows import UNKEYED, UNREADABLE, Names, TableRows
from llava_batch.read.uris import refuse_the_web, root_of
from llava_batch.storage import read_bytes
from llava_batch.unit import Unit

_ROWS_AT_ONCE = 64
_FOOTED = b"ARROW1"
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Arrow(Kind):
    """One file, one unit."""

    extensions = frozenset({".arrow"})
    only_named = True
    """But for the files of a dataset on disk (`neighbours`)."""

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        with unit.fs.open_input_file(unit.path) as file:
            try:
                schema = _schema(file)
                image = find_image_column(schema, reading.image_column, unit.shown)
                key = find_key_column(schema, reading.key_column, unit.shown)
            except UNREADABLE as error:
                if not is_damage(error):
                    raise
                yield damaged("", "%damaged-1", f"no Arrow file can be read here: {error}")
                return
            except UsageError as error:
                yield missing("0", str(error))
                return
            asked = dict.fromkeys((image, key, *reading.columns, "error_message"))
            rows_of = TableRows(
                image=image,
                names=Names(key, unit.retry or frozenset()),
                max_image_bytes=reading.max_image_bytes,
                root=root_of(unit, reading),
            )
            yield from _rows(
                file, [n for n in asked if n is not None and n in schema.names], rows_of
            )

    def refuse(self, unit: Unit, reading: Reading) -> None:
        schema = self.columns(unit)
        _refuse_indices(unit)
        if len(schema):
            image = find_image_column(schema, reading.image_column, unit.shown)
            find_key_column(schema, reading.key_column, unit.shown)
            if names_images(schema.field(image).type):
                refuse_the_web(self.rows(unit, reading), reading, unit.shown)

    def columns(self, unit: Unit) -> pa.Schema:
        with unit.fs.open_input_file(unit.path) as file:
            try:
                return _schema(file)
            except UNREADABLE as error:
                if not is_damage(error):
                    raise
                return pa.schema([])  # its rows will say so

    def count(self, unit: Unit) -> int | None:
        """Only of a local file: the batches' lengths stand between their bytes."""
        if unit.fs.type_name != "local":
            return None
        try:
            with pa.memory_map(unit.path) as file:
                lengths: list[int] = [batch.num_rows for batch in _batches(file)]
                return sum(lengths)
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            return None


def _refuse_indices(unit: Unit) -> None:
    """Refuse a dataset whose rows are chosen by a file of indices, as `datasets` before 2 wrote them.

    Raises:
        UsageError: it is one.
    """
    said = read_bytes(unit.fs, f"{unit.path.rpartition('/')[0]}/state.json")
    try:
        state = json.loads(said or b"{}")
    except ValueError:
        return
    if isinstance(state, dict) and state.get("_indices_data_files"):
        raise UsageError(
            f"{unit.shown}: its rows are chosen by {state['_indices_data_files'][0]['filename']}, which is "
            "not read; write it anew with flatten_indices() and save_to_disk()"
        )


def _schema(file: pa.NativeFile) -> pa.Schema:
    file.seek(0)
    footed = file.read(len(_FOOTED)) == _FOOTED
    file.seek(0)
    opened = stored(file)
    return (pa.ipc.open_file(opened) if footed else pa.ipc.open_stream(opened)).schema


def _batches(file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    file.seek(0)
    footed = file.read(len(_FOOTED)) == _FOOTED
    file.seek(0)
    if not footed:
        yield from pa.ipc.open_stream(file)
        return
    reader = pa.ipc.open_file(file)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _rows(file: pa.NativeFile, columns: list[str], rows_of: TableRows) -> Iterator[Row]:
    start = 0
    try:
        for batch in _batches(stored(file)):
            wanted = batch.select(columns)
            for first in range(0, wanted.num_rows, _ROWS_AT_ONCE):
                yield from _valid(wanted.slice(first, _ROWS_AT_ONCE), start + first, rows_of)
            start += batch.num_rows
        if not _has_end(file):
            yield damaged(str(start), UNKEYED, "the stream ends here, without its mark of the end")
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        yield damaged(str(start), UNKEYED, f"from row {start} on the file cannot be read: {error}")


def _valid(batch: pa.RecordBatch, start: int, rows_of: TableRows) -> Iterator[Row]:
    """The rows of a batch whose buffers hold what they say; one by one where they do not."""
    try:
        batch.validate(full=True)
    except UNREADABLE as error:
        if batch.num_rows == 1:
            yield damaged(str(start), UNKEYED, f"a value of this row cannot be read: {error}")
            return
        for number in range(batch.num_rows):
            yield from _valid(batch.slice(number, 1), start + number, rows_of)
        return
    yield from rows_of.batch(batch, start)


def _has_end(file: pa.NativeFile) -> bool:
    """Whether a stream ends as its writer ends it: cut between two batches it would read as whole."""
    file.seek(max(file.size() - len(_END), 0))
    last: bytes = file.read(len(_END))
    file.seek(0)
    first: bytes = file.read(len(_FOOTED))
    return last == _END or first == _FOOTED
