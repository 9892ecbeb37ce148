"""One unit's table: its rows put in order whatever they weigh, a retry's rows in their places, its bytes.

Arrow's `string` ends at 2 GiB a chunk, and so does every take, sort and cast of one: rows are gathered
in chunks of `_CHUNK_BYTES`, and each chunk is a row group or record batch of the file, which bounds what a
reader holds too. Knows nothing of ledgers or folders.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llava_batch.ids import name_in_unit, name_of
from llava_batch.unit import Unit
from llava_batch.write.scratch import Held, Rows

_CHUNK_BYTES = 32 * 2**20


def gathered(parts: Sequence[pa.Table], order: np.ndarray) -> pa.Table:
    """The rows of `parts` (of one schema, at least one) in `order`, which counts through all of them."""
    return pa.concat_tables(chunks([Held(part) for part in parts], order))


def chunks(parts: Sequence[Rows], order: np.ndarray) -> Iterator[pa.Table]:
    """The rows of `parts` (at least one) in `order`, in tables of one chunk and bounded size, at least one.
    A part is read again for each of them that has rows of it."""
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    owners = np.searchsorted(starts, order, side="right") - 1
    weights = np.array([part.nbytes / max(part.num_rows, 1) for part in parts])[owners]
    numbers = np.floor(np.cumsum(weights) / _CHUNK_BYTES).astype(np.int64)
    for rows in np.split(np.arange(len(order)), np.flatnonzero(np.diff(numbers)) + 1):
        yield _chunk(parts, starts, owners[rows], order[rows])


def _chunk(
    parts: Sequence[Rows], starts: np.ndarray, owners: np.ndarray, order: np.ndarray
) -> pa.Table:
    """The rows that `order` names, each of the part `owners` says."""
    if not len(order):
        return parts[0].read().slice(0, 0).combine_chunks()
    by_part = np.argsort(owners, kind="stable")
    bounds = np.flatnonzero(np.diff(owners[by_part])) + 1
    found = []
    for mine in np.split(by_part, bounds):
        owner = owners[mine[0]]
        places = pa.array(order[mine] - starts[owner], pa.int64())
        found.append(parts[owner].read().combine_chunks().take(places))
    back = np.empty(len(order), np.int64)
    back[by_part] = np.arange(len(order))
    whole = pa.concat_tables(found).combine_chunks()
    return whole if (back == np.arange(len(back))).all() else whole.take(pa.array(back))


def retried(old: pa.Table, new: pa.Table, unit: Unit) -> pa.Table:
    """`old` with its rows in error replaced by `new`'s rows of the same id, and all rows of an image
    that changed by all of its new ones; any other row as it was."""
    place = {ident: old.num_rows + i for i, ident in enumerate(new["id"].to_pylist())}
    order = [
        place.get(ident, i) if status == "error" else i
        for i, (ident, status) in enumerate(
            zip(old["id"].to_pylist(), old["status"].to_pylist(), strict=True)
        )
    ]
    if unit.changed:
        order = _with_changed(order, [*old["id"].to_pylist(), *place], old.num_rows, unit)
    parts = [
        pa.Table.from_batches([b]) for t in (old, new.cast(old.schema)) for b in t.to_batches()
    ]
    return gathered(parts, np.array(order, np.int64)) if parts else old


def _with_changed(order: list[int], ids: list[str], num_old: int, unit: Unit) -> list[int]:
    """`order` with all new rows of the images that changed for all old ones, by the unit's members."""
    names = [name_of(ident, unit.id_base) for ident in ids]
    kept = [i for i in order if names[i] not in unit.changed]
    fresh = [i for i in range(num_old, len(ids)) if names[i] in unit.changed]
    rank = {name_in_unit(member, None): n for n, member in enumerate(unit.members)}
    return sorted([*kept, *fresh], key=lambda i: rank[names[i]])


def encoded(table: pa.Table, format: str) -> pa.Buffer:
    """The table as the bytes of a Parquet or Arrow IPC file."""
    sink = pa.BufferOutputStream()
    encode(sink, [table], format)
    return sink.getvalue()


def encode(sink: Any, tables: Iterable[pa.Table], format: str) -> None:
    """Write tables of one schema (at least one) to `sink` as one Parquet or Arrow IPC file, each chunk a row group or
    record batch of its own; no more than one table is held."""
    tables = iter(tables)
    first = next(tables)
    with _writer(sink, first.schema, format) as writer:
        for table in chain([first], tables):
            for batch in table.to_batches():
                writer.write_batch(batch)


def _writer(sink: Any, schema: pa.Schema, format: str) -> Any:
    if format == "arrow":
        return pa.ipc.new_file(sink, schema)
    return pq.ParquetWriter(sink, schema, compression="zstd")


def decoded(data: bytes, format: str) -> pa.Table | None:
    """The table in `data`, a Parquet or Arrow IPC file or a part's stream; None where it does not parse."""
    try:
        if format == "part":
            return pa.ipc.open_stream(pa.BufferReader(data)).read_all()
        if format == "arrow":
            return pa.ipc.open_file(pa.BufferReader(data)).read_all()
        return pq.read_table(pa.BufferReader(data))
    except (OSError, ValueError, pa.ArrowException):
        return None


def origin(schema: pa.Schema) -> dict[str, str]:
    """What a table's schema metadata says of its origin, by the short names."""
    prefix = b"llava_batch."
    found = (schema.metadata or {}).items()
    return {k.removeprefix(prefix).decode(): v.decode() for k, v in found if k.startswith(prefix)}


def origin_of(fs: pafs.FileSystem, path: str) -> dict[str, str]:
    """`origin` of a file, its footer alone read; nothing where that is none of ours, or does not read."""
    try:
        with fs.open_input_file(path) as file:
            if path.endswith(".arrow"):
                return origin(pa.ipc.open_file(file).schema)
            return origin(pq.read_schema(file))
    except (OSError, ValueError, pa.ArrowException):
        return {}
