"""All rows of what was found, as the readers give them, to compare with what a table's library reads."""

from typing import Any

import pyarrow as pa

from llava_batch.ids import image_id
from llava_batch.job import Job
from llava_batch.read.find import Inputs
from llava_batch.read.kinds import KINDS, read_rows
from llava_batch.read.reading import Reading


def as_read(found: Inputs, *columns: str, **settings: Any) -> list[dict[str, Any]]:
    """The rows' columns in the table's order, with the image where the image column is none of
    `columns`; in the order of the units."""
    made = []
    for unit in found.units:
        schema = KINDS[unit.kind].columns(unit)
        assert schema is not None
        rows = []
        for row in read_rows(unit, Reading.of(Job(**settings), columns, pa.schema([]))):
            assert row.error is None, row.error
            whole = row.columns | {"image": row.images[0]}
            rows.append({name: whole[name] for name in schema.names if name in {*columns, "image"}})
        assert KINDS[unit.kind].count(unit) == len(rows)
        made += rows
    return made


def names(found: Inputs) -> list[str]:
    """The column `name` of all rows."""
    return [row["name"] for row in as_read(found, "name")]


def keys_by_unit(found: Inputs, **settings: Any) -> dict[str, list[str]]:
    """Each unit's keys."""
    how = Reading.of(Job(**settings), (), pa.schema([]))
    return {unit.name: [row.key for row in read_rows(unit, how)] for unit in found.units}


def ids(found: Inputs, **settings: Any) -> list[str]:
    """The ids that answers would have, in the units' order."""
    how = Reading.of(Job(**settings), (), pa.schema([]))
    return [
        image_id(unit.id_base, row.key, row.mark)
        for unit in found.units
        for row in read_rows(unit, how)
    ]
