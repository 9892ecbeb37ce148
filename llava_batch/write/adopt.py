"""Adopt: a whole table whose record a kill prevented → the record, by what the table itself says."""

from collections import Counter

import pyarrow as pa

from llava_batch.write.record import Record
from llava_batch.write.unit_table import origin


def record_of_table(
    table: pa.Table, *, unit: str, name: str, size: int, hashed: str, input: str
) -> Record | None:
    """The record of `unit`'s table, of so many bytes under `name`, answered from `input`; None where it is
    not the whole answer to its unit, or none of ours."""
    found = origin(table.schema)
    if found.get("complete") != "true":
        return None
    errors = Counter(code for code in table["error_code"].to_pylist() if code is not None)
    return Record(
        unit=unit,
        table=name,
        table_bytes=size,
        table_hash=hashed,
        fingerprint=found["fingerprint"],
        input=input,
        source=found["source"],
        rows=table.num_rows,
        images=int(found["images"]),
        errors=dict(sorted(errors.items())),
        rules=int(found.get("rules", 1)),
        deleted=found.get("deleted", ""),
    )
