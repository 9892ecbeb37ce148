"""The columns of a published table: those of the answers, the kept ones, and two of its own.

    unit_version   string   which answers of its unit a row is of: the folder's id and the table's digest
    publication    string   which publication brought the row: its time in UTC and a random part

Types that tables of the lake do not have are widened, without loss: integers to int32 or int64 (uint64 to
decimal), float16 to float, times to microseconds in UTC.
"""

import pyarrow as pa

from llava_batch.errors import UsageError
from llava_batch.tables import load_schema

UNIT_VERSION, PUBLICATION = "unit_version", "publication"

_WIDER = {
    pa.int8(): pa.int32(), pa.int16(): pa.int32(), pa.uint8(): pa.int32(), pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0), pa.float16(): pa.float32(),
    pa.date64(): pa.date32(), pa.large_string(): pa.string(), pa.large_binary(): pa.binary(),
}  # fmt: skip
_SAME = {pa.bool_(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.binary(),
         pa.date32()}  # fmt: skip


def published_schema(keep: pa.Schema) -> pa.Schema:
    """The schema of a table in which the kept columns are those of `keep`.

    Raises:
        UsageError: a kept column has a name or a type that a published table cannot have.
    """
    own = [pa.field(UNIT_VERSION, pa.string()), pa.field(PUBLICATION, pa.string())]
    for column in keep:
        if column.name in (UNIT_VERSION, PUBLICATION):
            raise UsageError(f"--keep {column.name}: a published table has a column of that name "
                             "itself; leave it out, or publish nothing")  # fmt: skip
    named = [*load_schema("answers"), *keep]
    return pa.schema([*(pa.field(f.name, _lake_type(f.name, f.type)) for f in named), *own])


def rows_for(table: pa.Table, schema: pa.Schema, version: str, publication: str) -> pa.Table:
    """A unit's rows with the columns of `schema`; one that its older table lacks is null."""
    own = {UNIT_VERSION: version, PUBLICATION: publication}
    columns = []
    for field in schema:
        if field.name in own:
            columns.append(pa.repeat(pa.scalar(own[field.name], field.type), table.num_rows))
        elif field.name in table.schema.names:
            columns.append(table[field.name].cast(field.type))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.table(columns, schema=schema)


def is_held(held: pa.Schema, field: pa.Field) -> bool:
    """Whether a table that reads as `held` has the column, of that type."""
    return field.name in held.names and _plain(held.field(field.name).type) == _plain(field.type)


def is_same(held: pa.Schema, wanted: pa.Schema) -> bool:
    """Whether a table that reads as `held` has the columns of `wanted` and no others."""
    return set(held.names) == set(wanted.names) and all(is_held(held, field) for field in wanted)


def _plain(kind: pa.DataType) -> str:
    """A type, however wide its offsets and whatever its items are called."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_plain(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{f.name}: {_plain(f.type)}' for f in kind)}>"
    return str(kind).removeprefix("large_").removesuffix("_view")


def _lake_type(name: str, kind: pa.DataType) -> pa.DataType:
    if kind in _SAME or pa.types.is_decimal128(kind):
        return kind
    if kind in _WIDER:
        return _WIDER[kind]
    if pa.types.is_timestamp(kind) and kind.unit != "ns":
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_lake_type(name, kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _lake_type(name, f.type)) for f in kind])
    raise UsageError(f"--keep {name}: {kind} is no type of a published table; give another with "
                     f"--keep {name}:TYPE (timestamp[us] for one in nanoseconds), or leave it out")  # fmt: skip
