"""The columns that travel beside an image: those that prompts ask for, and those that are kept.

Prompt columns travel as one JSON object of text; kept columns as Arrow columns `keep.<name>`, typed
by the person or as in the first unit; every unit's values are that type exactly, or it is refused.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llava_batch.errors import UsageError
from llava_batch.ids import printable
from llava_batch.read.exact import Inexact, exact
from llava_batch.read.kinds import KINDS
from llava_batch.tables import KEEP, TYPE_NAMES, load_schema, parse_type
from llava_batch.unit import Unit


def image_schema(keep: pa.Schema) -> pa.Schema:
    """The schema of a reader's blocks: `schemas/images.json` and the kept columns."""
    kept = [pa.field(KEEP + f.name, f.type) for f in keep]
    return pa.schema([*load_schema("images"), *kept])


def kept_names(keep: Sequence[str]) -> list[str]:
    """The columns' names of `--keep NAME` and `--keep NAME:TYPE`, in order.

    Raises:
        UsageError: a TYPE that there is not, or a name that is given twice.
    """
    names = [_name_and_type(text)[0] for text in keep]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--keep {name}: given twice; give each column once")
    return names


def keep_schema(
    keep: Sequence[str], unit: Unit, first_row: dict[str, Any], held: pa.Schema | None = None
) -> pa.Schema:
    """The types of the kept columns: as `--keep NAME:TYPE` says, else as `held` (an earlier run's) has
    them, else as `unit` has them; `first_row` is its first row's columns.

    Raises:
        UsageError: a name that is a column of the answers already, or that the unit does not have.
    """
    for name in kept_names(keep):
        if name in load_schema("answers").names:
            raise UsageError(f"--keep {name}: the answers have a column of that name; rename it")
        if name not in first_row and held is None:
            raise UsageError(f"--keep {name}: {_no_such(name, unit, first_row)}")
    typed = _types(unit) if held is None else {}
    before = {field.name: field.type for field in held or ()}
    return pa.schema(
        (name, given or before.get(name) or typed.get(name) or _type_of(first_row.get(name)))
        for name, given in map(_name_and_type, keep)
    )


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


def cast_kept(values: Sequence[Any], kind: pa.DataType, name: str, unit: str) -> pa.Array:
    """`values` as `kind`, each exactly.

    Raises:
        UsageError: one cannot be, naming the column, the unit and the value.
    """
    try:
        return exact(values, kind)
    except Inexact as error:
        raise UsageError(
            f"--keep {name}: unit {unit} has {error}, which {kind} does not hold exactly; name a type "
            f"that holds all of the column's values, such as --keep {name}:{_type_for(error.value)}"
        ) from None


def _text(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_text(v) for v in value]
    return printable(json.dumps(value, ensure_ascii=False, default=str))


def _name_and_type(text: str) -> tuple[str, pa.DataType | None]:
    """`NAME` or `NAME:TYPE`; the colons within a type's brackets are its own."""
    outside = re.sub(r"[<\[(].*[>\])]", lambda match: "x" * len(match[0]), text)
    name, colon, _ = outside.rpartition(":")
    if not colon:
        return text, None
    try:
        return text[: len(name)], parse_type(text[len(name) + 1 :])
    except ValueError:
        raise UsageError(
            f"--keep {text}: {text[len(name) + 1 :]} is no type; give one of {TYPE_NAMES} (a column "
            f"whose name has a colon needs its type too: {text}:string)"
        ) from None


def _type_of(value: Any) -> pa.DataType:
    """JSON knows one kind of number: the next row may have a fraction."""
    if isinstance(value, bool):
        return pa.bool_()
    return pa.float64() if isinstance(value, int | float) else pa.string()


def _type_for(value: Any) -> str:
    """A type that holds `value`, for a person who is to name one."""
    if isinstance(value, pa.Scalar):
        return str(value.type).replace(" ", "")
    if isinstance(value, int) and not isinstance(value, bool):
        return "int64" if -(2**63) <= value < 2**63 else "string"
    return "double" if isinstance(value, float) else "string"


def _types(unit: Unit) -> dict[str, pa.DataType]:
    """The columns' types where the unit says them before it is read."""
    plain = {}
    for field in KINDS[unit.kind].columns(unit) or ():
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        # A column that is null in every row of this file holds text in the next, more often than not.
        plain[field.name] = pa.string() if pa.types.is_null(kind) else kind
    return plain | dict.fromkeys(dict(unit.partition), pa.string())


def _no_such(name: str, unit: Unit, first_row: dict[str, Any]) -> str:
    there = ", ".join(sorted(first_row)) or "none"
    return f"{unit.shown} has no column {name}; there are {there}"
