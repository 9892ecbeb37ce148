"""The columns that travel beside an image: those that prompts ask for, and those that are kept.

Prompt columns travel as one JSON object of text; kept columns as Arrow columns `keep.<name>`, typed
as in the first unit, later units cast to that type or refused by name.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llava_batch.errors import UsageError
from llava_batch.ids import printable
from llava_batch.read.kinds import KINDS
from llava_batch.tables import KEEP, load_schema
from llava_batch.unit import Unit


def image_schema(keep: pa.Schema) -> pa.Schema:
    """The schema of a reader's blocks: `schemas/images.json` and the kept columns."""
    kept = [pa.field(KEEP + f.name, f.type) for f in keep]
    return pa.schema([*load_schema("images"), *kept])


def keep_schema(names: Sequence[str], unit: Unit, first_row: dict[str, Any]) -> pa.Schema:
    """The types of the kept columns, as `unit` has them; `first_row` is its first row's columns.

    Raises:
        UsageError: a name that is a column of the answers already, or that the unit does not have.
    """
    for name in names:
        if name in load_schema("answers").names:
            raise UsageError(f"--keep {name}: the answers have a column of that name; rename it")
        if name not in first_row:
            raise UsageError(f"--keep {name}: {_no_such(name, unit, first_row)}")
    typed = _types(unit)
    return pa.schema([(n, typed[n] if n in typed else _type_of(first_row[n])) for n in names])


def require_columns(names: Sequence[str], flag: str, unit: Unit, first_row: dict[str, Any]) -> None:
    """Refuse a prompt column that the first unit does not have."""
    for name in names:
        if name not in first_row:
            raise UsageError(f"{flag}: {_no_such(name, unit, first_row)}")


def as_json(columns: dict[str, Any], names: Sequence[str]) -> str | None:
    """The prompt columns of one row as a JSON object; a list of texts stays a list."""
    if not names:
        return None
    return json.dumps({name: _text(columns.get(name)) for name in names}, ensure_ascii=False)


def cast_kept(values: list[Any], kind: pa.DataType, name: str, unit: str) -> pa.Array:
    """`values` as `kind`.

    Raises:
        UsageError: they cannot be, naming the unit and the column.
    """
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = [_text(json.dumps(v, default=str) if isinstance(v, list) else v) for v in values]
    try:
        return pa.array(values, kind)
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise UsageError(
            f"--keep {name}: unit {unit} has values that are no {kind} ({error})"
        ) from None


def _text(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_text(v) for v in value]
    return printable(json.dumps(value, ensure_ascii=False, default=str))


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _types(unit: Unit) -> dict[str, pa.DataType]:
    """The columns' types where the unit says them before it is read."""
    plain = {}
    for field in KINDS[unit.kind].columns(unit) or ():
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        # A column that is null in every row of this file holds text in the next, more often than not.
        plain[field.name] = pa.string() if pa.types.is_null(kind) else kind
    return plain


def _no_such(name: str, unit: Unit, first_row: dict[str, Any]) -> str:
    there = ", ".join(sorted(first_row)) or "none"
    return f"{unit.shown} has no column {name}; there are {there}"
