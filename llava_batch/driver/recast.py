"""A kept column gets another type (`--keep NAME:TYPE`): committed tables are rewritten, exactly or not at all.

All of them are tried before one is touched. While they are rewritten `_job.json` says so: a run that was
killed in between is finished by the next one, whatever types that one names.
"""

import pyarrow as pa

from llava_batch.read.columns import cast_kept
from llava_batch.read.exact import rows_of
from llava_batch.write.ledger import Ledger


def needs_recast(ledger: Ledger, keep: pa.Schema, *, overwrite: bool) -> bool:
    """Whether the folder's tables have to get `keep`'s types. With `overwrite` they are answers of other
    settings instead, and make room.

    Raises:
        UsageError: a committed value that its column's new type does not hold, named.
    """
    if ledger.keep is None or (ledger.keep.equals(keep) and not ledger.recasting):
        return False
    for record in ledger.of_this_run():
        if overwrite:
            ledger.retire([record])
        elif (table := ledger.read_table(record.unit)) is not None:
            _recast(record.unit, table, keep)
    return not overwrite


def recast(ledger: Ledger, keep: pa.Schema) -> None:
    """Rewrite the folder's tables with `keep`'s types, and say that it is done."""
    for record in ledger.of_this_run():
        table = ledger.read_table(record.unit)
        if table is not None:
            ledger.replace(record, _recast(record.unit, table, keep))
    ledger.end_recasting()


def _recast(unit: str, table: pa.Table, keep: pa.Schema) -> pa.Table:
    for field in keep:
        place = table.schema.get_field_index(field.name)
        if place < 0 or table.schema.field(place).type == field.type:
            continue
        chunks = [
            cast_kept([row[field.name] for row in rows_of(batch)], field.type, field.name, unit)
            for batch in table.select([field.name]).to_batches()
        ]
        table = table.set_column(place, field, pa.chunked_array(chunks, field.type))
    return table
