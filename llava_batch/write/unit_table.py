"""One unit's table: its rows put in order whatever they weigh, a retry's rows in their places, its bytes.

Arrow's `string` ends at 2 GiB a chunk, and so does every take, sort and cast of one: rows are gathered
in chunks of `_CHUNK_BYTES`, and each chunk is a row group or record batch of the file, which bounds what a
reader holds too. Knows nothing of ledgers or folders.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llava_batch.ids import name_in_unit, name_of
from llava_batch.unit import Unit

_CHUNK_BYTES = 256 * 2**20


def gathered(parts: Sequence[pa.Table], order: np.ndarray) -> pa.Table:
    """The rows of `parts` (of one schema, at least one) in `order`, which counts through all of them."""
    whole = pa.concat_tables(parts)
    if whole.nbytes <= _CHUNK_BYTES:
        return whole.combine_chunks().take(pa.array(order, pa.int64()))
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    owners = np.searchsorted(starts, order, side="right") - 1
    breaks = np.flatnonzero((np.diff(order) != 1) | (np.diff(owners) != 0)) + 1
    chunks: list[pa.Table] = []
    held: list[pa.Table] = []
    held_bytes = 0
    for run in np.split(np.arange(len(order)), breaks) if len(order) else []:
        owner = owners[run[0]]
        held.append(parts[owner].slice(order[run[0]] - starts[owner], len(run)))
        held_bytes += held[-1].nbytes
        if held_bytes >= _CHUNK_BYTES:
            chunks.append(pa.concat_tables(held).combine_chunks())
            held, held_bytes = [], 0
    if held or not chunks:
        chunks.append(pa.concat_tables(held or [parts[0].slice(0, 0)]).combine_chunks())
    return pa.concat_tables(chunks)


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
    names = [name_of(ident, unit.name) for ident in ids]
    kept = [i for i in order if names[i] not in unit.changed]
    fresh = [i for i in range(num_old, len(ids)) if names[i] in unit.changed]
    rank = {name_in_unit(member, None): n for n, member in enumerate(unit.members)}
    return sorted([*kept, *fresh], key=lambda i: rank[names[i]])


def encoded(table: pa.Table, format: str) -> pa.Buffer:
    """The table as the bytes of a Parquet or Arrow IPC file."""
    sink = pa.BufferOutputStream()
    if format == "arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            for batch in table.to_batches():
                writer.write_batch(batch)
    else:
        with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
            for batch in table.to_batches():
                writer.write_batch(batch)
    return sink.getvalue()


def decoded(data: bytes, format: str) -> pa.Table | None:
    """The table in `data`, or None where it does not parse."""
    try:
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
