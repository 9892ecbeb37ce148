"""Values as an Arrow type, exactly: what comes out equals what went in, or it is refused.

Numbers change their type where the number stays, structs their fields where none is lost, times their
unit where no digit is. Text takes any value, as JSON writes it, and is itself read where JSON (numbers)
or ISO 8601 (dates, timestamps) would read it. A struct's missing field is the same as a null one.

Python has no times of nanoseconds: columns of such are Arrow scalars in a row (`rows_of`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from llava_batch.ids import printable

_FAILED = (ValueError, TypeError, OverflowError, ArithmeticError, pa.ArrowException)
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


class Inexact(ValueError):
    """`value` cannot be held exactly."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"{value!r:.80}")
        self.value = value


def exact(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """`values` (Python objects or Arrow scalars of one type, or None) as an array of `kind`.

    Raises:
        Inexact: the first value that `kind` does not hold exactly.
    """
    try:
        return _cast(values, kind)
    except _FAILED:
        return pa.concat_arrays([_alone(value, kind) for value in values])


def rows_of(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows as Python objects, but for what Python would cut: those columns as Arrow scalars."""
    cut = [field.name for field in batch.schema if _has_nanoseconds(field.type)]
    rows: list[dict[str, Any]]
    rows = batch.drop_columns(cut).to_pylist() if cut else batch.to_pylist()
    for name in cut:
        for row, scalar in zip(rows, batch[name], strict=True):
            row[name] = scalar if scalar.is_valid else None
    return rows


def _alone(value: Any, kind: pa.DataType) -> pa.Array:
    try:
        return _cast([value], kind)
    except _FAILED:
        raise Inexact(value) from None


def _cast(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    source = next((value.type for value in values if isinstance(value, pa.Scalar)), None)
    if source is not None:
        return _cast_array(pa.array(values, source), kind)
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        present = [value for value in values if value is not None]
        if present and all(isinstance(value, str) for value in present):
            return pa.array(values, pa.string()).cast(kind)  # refuses digits that do not fit
    fitted = [_fitted(value, kind) for value in values]
    array = pa.array(fitted, kind)
    for value, held in zip(fitted, array.to_pylist(), strict=True):
        if not _same(value, held):
            raise Inexact(value)
    return array


def _cast_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Arrow's own cast, there and back, where both mean the same kind of thing."""
    if not (_alike(array.type, kind) or (pa.types.is_timestamp(array.type) and _is_text(kind))):
        raise TypeError(f"{array.type} is no {kind}")
    made = array.cast(kind)
    if not _equal(made.cast(array.type), array):
        raise ValueError(f"{kind} is not {array.type}")
    return made


def _equal(one: pa.Array, other: pa.Array) -> bool:
    """Whether two arrays of one type say the same; what is not a number is the same as itself, where
    Arrow's own comparison says that it is not."""
    if one.equals(other):
        return True
    if not one.is_valid().equals(other.is_valid()):
        return False
    if pa.types.is_struct(one.type):
        return all(map(_equal, one.flatten(), other.flatten()))
    if pa.types.is_list(one.type) or pa.types.is_large_list(one.type):
        lengths = one.value_lengths().equals(other.value_lengths())
        return bool(lengths) and _equal(one.flatten(), other.flatten())
    if not pa.types.is_floating(one.type):
        return False
    return all(_same(*pair) for pair in zip(one.to_pylist(), other.to_pylist(), strict=True))


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """`value` in the form in which `kind` takes it: text where it is text, a number of a text."""
    if value is None:
        return None
    if _is_text(kind):
        return _as_text(value)
    if pa.types.is_temporal(kind) and isinstance(value, int | float):
        raise TypeError("a number of ticks is no time")
    if isinstance(value, str) and (_is_number(kind) or pa.types.is_decimal(kind)):
        return _as_number(value, kind)
    if pa.types.is_struct(kind) and isinstance(value, Mapping):
        types = {field.name: field.type for field in kind}
        return {n: _fitted(v, types[n]) if n in types else v for n, v in value.items()}
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and isinstance(value, list):
        return [_fitted(item, kind.value_type) for item in value]
    return value


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list):
        return printable(json.dumps(value, default=_json_text))
    if isinstance(value, bool | int | float | dict):
        return printable(json.dumps(value, ensure_ascii=False, default=_json_text))
    return str(value)


def _json_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return str(value)


def _as_number(text: str, kind: pa.DataType) -> int | float | Decimal:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError("no number")
    if pa.types.is_decimal(kind):
        return Decimal(text)
    return float(text) if match[2] or match[3] else int(text)


def _same(value: Any, held: Any) -> bool:
    """Whether nothing of `value` was lost in `held`, which Arrow gave back for it."""
    if value is None or held is None:
        return value is None and held is None
    if isinstance(value, bool) != isinstance(held, bool):
        return False
    if isinstance(value, Mapping) and isinstance(held, Mapping):
        return all(_same(value.get(name), held.get(name)) for name in {*value, *held})
    if isinstance(value, list | tuple) and isinstance(held, list | tuple):
        return len(value) == len(held) and all(map(_same, value, held))
    return bool(value == held) or bool(value != value and held != held)  # both not a number


def _alike(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether a cast keeps what the values mean: a time is no number of ticks, a truth no number."""
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        types = {field.name: field.type for field in other}
        return all(f.name not in types or _alike(f.type, types[f.name]) for f in one)
    if one.num_fields == other.num_fields == 1:
        return _alike(one.field(0).type, other.field(0).type)
    return one == other or _meaning(one) == _meaning(other)


def _meaning(kind: pa.DataType) -> str:
    if _is_number(kind) or pa.types.is_decimal(kind):
        return "number"
    return "text" if _is_text(kind) else str(kind).partition("[")[0].rstrip("0123456789")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _has_nanoseconds(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_nanoseconds(kind.value_type)
    if getattr(kind, "unit", None) == "ns":
        return True
    return any(_has_nanoseconds(kind.field(i).type) for i in range(kind.num_fields))
