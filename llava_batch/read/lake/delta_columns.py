"""A Delta table's data file, its columns as the table has them: names, types, partition values, nulls.

Columns stand in the file under their physical names; one that came later is null, one that the table
is partitioned by is not in the file at all. Structs and lists likewise, at any depth.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_batch.read.pages import batches

_PHYSICAL = "delta.columnMapping.physicalName"
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class DeltaFile:
    """What a data file is read with."""

    path: str
    schema: pa.Schema
    """The table's, in the order of its columns."""
    fields: tuple[dict[str, Any], ...]
    """Its fields as the log has them, physical names among them."""
    partition: dict[str, Any]


def conformed_batches(
    parquet: pq.ParquetFile, group: int, num_rows: int, file: DeltaFile, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """The group's batches with the table's columns, deleted rows among them."""
    fields = {f["name"]: f for f in file.fields}
    wanted = [_physical(fields[name]) for name in columns if name not in file.partition]
    there = [name for name in wanted if name in parquet.schema_arrow.names]
    for batch in _batches(parquet, group, there, num_rows):
        yield _conformed(batch, file, fields, columns)


def _batches(
    parquet: pq.ParquetFile, group: int, columns: list[str], num_rows: int
) -> Iterator[pa.RecordBatch]:
    """The group's batches; of a file without any of the columns, empty ones of as many rows."""
    if columns:
        yield from batches(parquet, group, columns)
        return
    nothing = pa.RecordBatch.from_struct_array(pa.array([{}] * num_rows, pa.struct([])))
    yield from (nothing.slice(i, _ROWS_AT_ONCE) for i in range(0, num_rows, _ROWS_AT_ONCE))


def _conformed(
    batch: pa.RecordBatch, file: DeltaFile, fields: dict[str, dict[str, Any]], columns: list[str]
) -> pa.RecordBatch:
    """The batch with the table's names and types: partition columns put in, absent ones null."""
    arrays = []
    for name in columns:
        kind, physical = file.schema.field(name).type, _physical(fields[name])
        if name in file.partition:
            arrays.append(pa.repeat(pa.scalar(file.partition[name], kind), batch.num_rows))
        elif physical in batch.schema.names:
            arrays.append(_as_table_has_it(batch[physical], fields[name]["type"], kind))
        else:
            arrays.append(pa.nulls(batch.num_rows, kind))
    return pa.RecordBatch.from_arrays(arrays, names=columns)


def _as_table_has_it(array: pa.Array, said: Any, kind: pa.DataType) -> pa.Array:
    """`array` as `kind`, fields of structs by their physical names; `said` is the type in the log."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_struct(kind):
        children = []
        for field, inner in zip(said["fields"], kind, strict=True):
            index = array.type.get_field_index(_physical(field))
            there = pc.struct_field(array, index) if index >= 0 else None
            children.append(
                pa.nulls(len(array), inner.type)
                if there is None
                else _as_table_has_it(there, field["type"], inner.type)
            )
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    if pa.types.is_list(kind):
        # From offsets, so that lists that are null or sliced stay what they are.
        values = _as_table_has_it(pc.list_flatten(array), said["elementType"], kind.value_type)
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
    # Spark's INT96 reads as nanoseconds, of which the table keeps microseconds.
    return array.cast(kind, safe=not pa.types.is_timestamp(kind))


def _physical(field: dict[str, Any]) -> str:
    name: str = field["metadata"].get(_PHYSICAL, field["name"])
    return name
