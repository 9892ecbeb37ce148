"""Kept columns: every value is carried through exactly, or its unit is left open and says which is not."""

import datetime
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.read.columns import keep_schema
from llava_batch.read.kinds import first_row
from llava_batch.read.source import read_blocks
from llava_batch.unit import Unit
from tests.shards import picture, put, put_parquet, reading, tar_bytes, units_of

NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def parquet(path: Path, column: pa.Array) -> Unit:
    (unit,) = units_of(put_parquet(path, {"image": [picture()] * len(column), "c": column}))
    return unit


def tar(path: Path, values: list[Any]) -> Unit:
    """Images whose `.json` have `c`."""
    members = {}
    for number, value in enumerate(values):
        members[f"{number}.png"] = picture()
        members[f"{number}.json"] = json.dumps({"c": value}).encode()
    (unit,) = units_of(put(path, tar_bytes(members)))
    return unit


def keep_of(unit: Unit, *keep: str) -> pa.Schema:
    asked = keep or ("c",)
    return keep_schema(asked, unit, first_row(unit, reading(None, "c")))


def kept(unit: Unit, schema: pa.Schema) -> Any:
    """The kept column, or why the unit is left open."""
    table = pa.concat_tables([*read_blocks(unit, reading(schema))])
    (end,) = table.filter(table["end"]).to_pylist()
    return end["error_message"] or table.filter(pa.compute.invert(table["end"]))["keep.c"]


def equal(before: pa.Scalar, after: pa.Scalar) -> bool:
    """Whether they are the same value, whatever their types: times to the nanosecond, a null for a field
    that is not there, and the text that a value becomes where text was asked for."""
    if not before.is_valid or not after.is_valid:
        return not before.is_valid and not after.is_valid
    if pa.types.is_string(after.type) and not pa.types.is_string(before.type):
        return after.as_py() == spelt(before)
    if isinstance(before, pa.StructScalar) and isinstance(after, pa.StructScalar):
        null = pa.scalar(None)
        one, other = dict(before.items()), dict(after.items())
        return all(equal(one.get(n, null), other.get(n, null)) for n in {*one, *other})
    if isinstance(before, pa.ListScalar) and isinstance(after, pa.ListScalar):
        return len(before) == len(after) and all(map(equal, before.values, after.values))
    if pa.types.is_temporal(before.type) or pa.types.is_temporal(after.type):
        return ticks(before) == ticks(after)
    one, other = before.as_py(), after.as_py()
    truths = isinstance(one, bool) == isinstance(other, bool)
    return truths and (one == other or (one != one and other != other))


def ticks(scalar: pa.Scalar) -> Any:
    """What kind of time it is, and how many nanoseconds."""
    name = str(scalar.type).partition("[")[0].rstrip("0123456789")
    if not pa.types.is_temporal(scalar.type):
        return name
    return name, scalar.value * (86_400 * NS["s"] if name == "date" else NS[scalar.type.unit])


def spelt(scalar: pa.Scalar) -> Any:
    """A value as the text that it becomes."""
    if str(scalar.type) == "timestamp[ns]":
        return scalar.cast(pa.string()).as_py()
    value = scalar.as_py()
    if value is None or isinstance(value, str):
        return value
    times = datetime.date | datetime.time | datetime.timedelta
    if isinstance(value, times):
        return str(value)
    return json.dumps(value, default=str, ensure_ascii=isinstance(value, list))


def check(before: pa.Array, after: pa.ChunkedArray | str, unit: str, same_type: bool) -> None:
    if isinstance(after, str):
        assert not same_type, after
        assert f"--keep c: unit {unit} has " in after
        return
    assert len(before) == len(after) and all(map(equal, before, after)), (before, after)


NUMBERS = [pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(), pa.float64()]
TIMES = [pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("ns"), pa.time32("s"), pa.time64("us"),
         pa.time64("ns"), pa.date32(), pa.duration("ms"), pa.duration("ns")]  # fmt: skip
PLAIN = st.sampled_from([*NUMBERS, *TIMES, pa.string(), pa.bool_()])
KINDS = st.one_of(
    PLAIN,
    PLAIN.map(pa.list_),
    st.dictionaries(st.sampled_from("pqr"), PLAIN, min_size=1).map(
        lambda f: pa.struct([*f.items()])
    ),
)


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_list(kind):
        return st.lists(values_of(kind.value_type), max_size=2)
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({f.name: st.none() | values_of(f.type) for f in kind})
    if pa.types.is_temporal(kind):
        return st.integers(0, 86_399) | st.integers(0, 80_000_000)
    if pa.types.is_floating(kind):
        whole = st.integers(-100, 100).map(float)
        return whole | st.floats(width=kind.bit_width)
    if pa.types.is_integer(kind):
        bits = kind.bit_width - (not str(kind).startswith("u"))
        return st.integers(0, 100) | st.integers(0, 2**bits - 1)
    return (
        st.booleans()
        if pa.types.is_boolean(kind)
        else st.text(st.characters(codec="utf-8"), max_size=3)
    )


def array_of(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """Numbers that stand for times are their ticks."""
    if pa.types.is_temporal(kind):
        ticks = pa.int32() if kind.bit_width == 32 else pa.int64()
        most = {"time32[s]": 86_400, "date32[day]": 80_000}.get(str(kind), 2**31)
        values = [v if v is None else v % most for v in values]
        return pa.array(values, ticks).cast(kind)
    if pa.types.is_list(kind):
        inner = array_of(kind.value_type, [item for value in values for item in value or ()])
        offsets = [0]
        for value in values:
            offsets.append(offsets[-1] + len(value or ()))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner)
    if pa.types.is_struct(kind):
        columns = [array_of(f.type, [v and v[f.name] for v in values]) for f in kind]
        return pa.StructArray.from_arrays(columns, fields=[*kind])
    return pa.array(values, kind)


COLUMNS = KINDS.flatmap(
    lambda kind: st.lists(values_of(kind), min_size=1, max_size=3).map(lambda v: array_of(kind, v))
)


@settings(max_examples=300, deadline=None)
@given(first=COLUMNS, second=COLUMNS, same=st.booleans(), data=st.data())
def test_every_value_of_two_parquet_files_is_kept_exactly_or_named(
    tmp_path_factory, first, second, same, data
) -> None:
    # 0.31 and 2.9 became 0 and 2 where the first file had integers; structs lost fields, times digits.
    folder = tmp_path_factory.mktemp("in")
    if same:
        more = data.draw(st.lists(values_of(first.type), min_size=1, max_size=3))
        second = array_of(first.type, more)
    units = parquet(folder / "a.parquet", first), parquet(folder / "b.parquet", second)
    schema = keep_of(units[0])
    for unit, column in zip(units, (first, second), strict=True):
        check(column, kept(unit, schema), unit.name, column.type == first.type)


def test_what_is_not_a_number_is_kept_beside_times_of_nanoseconds(tmp_path: Path) -> None:
    # Arrow says of such a number, within a struct, that it is not the same as itself.
    wide = pa.struct([("p", pa.float64()), ("t", pa.time64("ns"))])
    slim = pa.struct([("p", pa.float32()), ("t", pa.time64("ns"))])
    values = pa.array([{"p": math.nan, "t": None}, {"p": 1.5, "t": 3}], wide)
    lists = pa.array([[{"p": math.nan, "t": 1}], []], pa.list_(wide))
    for column, kind in ((values, slim), (lists, pa.list_(slim))):
        schema = pa.schema([("c", kind)])
        found = kept(parquet(tmp_path / "a.parquet", column), schema)
        assert str(pa.concat_arrays(found.chunks)) == str(column.cast(kind))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.integers() | st.floats() | st.text("é1.", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("pq"), inner),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(first=st.lists(JSON, min_size=1, max_size=2), second=st.lists(JSON, min_size=1, max_size=2))
def test_every_value_of_two_tars_is_kept_exactly_or_named(tmp_path_factory, first, second) -> None:
    folder = tmp_path_factory.mktemp("in")
    units = tar(folder / "a.tar", first), tar(folder / "b.tar", second)
    schema = keep_of(units[0])
    for unit, values in zip(units, (first, second), strict=True):
        found = kept(unit, schema)
        if isinstance(found, str):
            assert f"--keep c: unit {unit.name} has " in found
            continue
        for value, got in zip(values, found.to_pylist(), strict=True):
            if isinstance(got, str) and not isinstance(value, str):
                got = json.loads(got)
            assert json.dumps(got, sort_keys=True) == json.dumps(value, sort_keys=True) or (
                got == value and isinstance(got, bool) == isinstance(value, bool)
            )


def test_whole_numbers_of_a_tars_json_leave_room_for_fractions(tmp_path: Path) -> None:
    # Integers in the first file made every later score an integer.
    first, second = tar(tmp_path / "a.tar", [1, 2]), tar(tmp_path / "b.tar", [0.31, 2.9])
    schema = keep_of(first)
    assert schema.field("c").type == pa.float64()
    assert kept(second, schema).to_pylist() == [0.31, 2.9]


def test_integers_of_parquet_stay_and_a_fraction_leaves_its_unit_open(tmp_path: Path) -> None:
    first = parquet(tmp_path / "a.parquet", pa.array([1, 2]))
    second = parquet(tmp_path / "b.parquet", pa.array([3.0, 0.31]))
    said = kept(second, keep_of(first))
    assert "--keep c: unit b has 0.31, which int64 does not hold exactly" in said
    assert "--keep c:double" in said
    assert kept(parquet(tmp_path / "c.parquet", pa.array([3.0])), keep_of(first)).to_pylist() == [3]


def test_a_number_past_what_a_double_holds_says_which_type_does(tmp_path: Path) -> None:
    unit = tar(tmp_path / "a.tar", [2**53 + 1])
    said = kept(unit, keep_of(unit))
    assert f"has {2**53 + 1}, which double" in said and "--keep c:int64" in said
    assert kept(unit, keep_of(unit, "c:int64")).to_pylist() == [2**53 + 1]


@pytest.mark.parametrize(
    ("kind", "values", "held"),
    [
        ("int64", [7], [7]),
        ("double", [7, 0.5], [7.0, 0.5]),
        ("string", [7, "x", [1, "é"]], ["7", "x", '[1, "\\u00e9"]']),
        ("int8", ["7", None], [7, None]),
        ("timestamp[us]", ["2021-05-01T10:00:00.25"], None),
        ("date32", ["2021-05-01"], None),
        ("list<int64>", [[1], []], [[1], []]),
        ("struct<a: double, b: string>", [{"a": 1}], [{"a": 1.0, "b": None}]),
        ("decimal128(4, 2)", ["1.25"], None),
    ],
)
def test_a_type_given_beforehand_is_the_columns_type(
    tmp_path: Path, kind: str, values: list[Any], held: list[Any] | None
) -> None:
    unit = tar(tmp_path / "a.tar", values)
    schema = keep_of(unit, f"c:{kind}")
    found = kept(unit, schema)
    assert not isinstance(found, str), found
    assert held is None or found.to_pylist() == held
    assert found.null_count == values.count(None)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int64", "007"), ("int64", "1e3x"), ("float", 0.1), ("bool", 1), ("double", True),
     ("timestamp[s]", "2021-05-01T10:00:00.25"), ("struct<a: int64>", {"a": 1, "b": 2}), ("int8", 128)],
)  # fmt: skip
def test_what_a_given_type_does_not_hold_is_refused_by_value(
    tmp_path: Path, kind: str, value: Any
) -> None:
    unit = tar(tmp_path / "a.tar", [value])
    said = kept(unit, keep_of(unit, f"c:{kind}"))
    assert isinstance(said, str) and f"--keep c: unit a has {value!r}" in said


@pytest.mark.parametrize("text", ["c:int", "c:", "c:flaot64", "exif:Model", "c:list<int>", "c:decimal128(99,1)"])  # fmt: skip
def test_a_type_that_there_is_not_is_refused_with_those_that_are(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"is no type; give one of bool, string, int8"):
        keep_of(tar(tmp_path / "a.tar", [1]), text)


def test_a_name_with_a_colon_is_kept_with_its_type(tmp_path: Path) -> None:
    unit = parquet(tmp_path / "a.parquet", pa.array([1]))
    schema = keep_schema(["exif:Model:string", "t:struct<a: timestamp[us, tz=UTC]>"], unit,
                         {"exif:Model": None, "t": None})  # fmt: skip
    assert schema.names == ["exif:Model", "t"]


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--keep c: given twice"):
        keep_of(tar(tmp_path / "a.tar", [1]), "c", "c:int64")


def test_the_types_of_an_earlier_run_stand_unless_another_is_given(tmp_path: Path) -> None:
    unit, held = tar(tmp_path / "a.tar", [1]), pa.schema([("c", pa.int64())])
    assert keep_schema(["c"], unit, {}, held) == held
    assert keep_schema(["c:double"], unit, {}, held).field("c").type == pa.float64()
