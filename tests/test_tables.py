"""The published schemas: what the documentation promises, in files, in the wheel."""

import json
import tomllib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch import tables
from llava_batch.errors import UsageError
from llava_batch.generate.answer_rows import generated_schema
from llava_batch.tables import (
    BOOKKEEPING,
    load_contract,
    load_schema,
    packed,
    parse_type,
    schema_names,
    unpacked,
)

ROOT = Path(__file__).parent.parent
NAMES = ["answers", "images", "instructions", "questions"]

TURN = pa.struct(
    [
        ("question", pa.string()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("answer_tokens", pa.int32()),
        ("mean_logprob", pa.float32()),
    ]
)
ANSWERS = [
    ("id", pa.string(), False),
    ("unit", pa.string(), False),
    ("key", pa.string(), False),
    ("question_id", pa.string(), True),
    ("num_images", pa.int32(), False),
    ("image_sha256", pa.string(), True),
    ("width", pa.int32(), True),
    ("height", pa.int32(), True),
    ("turns", pa.list_(TURN), True),
    ("prompt", pa.string(), True),
    ("answer", pa.string(), True),
    ("finish_reason", pa.string(), True),
    ("prompt_tokens", pa.int32(), True),
    ("answer_tokens", pa.int32(), True),
    ("mean_logprob", pa.float32(), True),
    ("status", pa.string(), False),
    ("error_code", pa.string(), True),
    ("error_message", pa.string(), True),
]
"""The answers table, written down a second time: a change of it must be meant."""


def test_the_answers_table_has_the_promised_columns_in_order() -> None:
    assert [(f.name, f.type, f.nullable) for f in load_schema("answers")] == ANSWERS


def test_the_schemas_are_those_that_are_published() -> None:
    assert schema_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_contract_names_type_nullability_and_meaning_of_every_field(name: str) -> None:
    contract = load_contract(name)
    assert contract.keys() == {"name", "version", "description", "fields"}
    assert contract["name"] == name and contract["version"] >= 1
    for field in contract["fields"]:
        assert field.keys() == {"name", "type", "nullable", "description"}
        assert isinstance(field["nullable"], bool)
        assert field["description"].endswith("."), f"{field['name']}: a sentence"
    names = [field["name"] for field in contract["fields"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_carries_its_name_and_version(name: str) -> None:
    version = load_contract(name)["version"]
    assert load_schema(name).metadata == {b"llava_batch.schema": f"{name}/{version}".encode()}


def test_a_schema_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="no schema called replies; there are answers, images"):
        load_schema("replies")


def test_generated_rows_have_the_answers_columns_and_the_bookkeeping_and_what_is_kept() -> None:
    kept = pa.field("keep:caption", pa.string())
    names = [name for name, _, _ in ANSWERS]
    assert generated_schema([kept]).names == [*names, *BOOKKEEPING.names, "keep:caption"]


_scalars = st.sampled_from(
    [*sorted(tables._SCALARS), "timestamp[ns]", "timestamp[us, tz=UTC]", "timestamp[ms, tz=+02:00]",
     "time32[s]", "time64[ns]", "duration[ms]", "decimal128(9, 2)", "decimal256(40,3)"]
)  # fmt: skip
_types = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        inner.map(lambda t: f"list<{t}>"),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda ts: "struct<" + ", ".join(f"f{i}: {t}" for i, t in enumerate(ts)) + ">"
        ),
    ),
    max_leaves=6,
)


@given(_types)
@settings(deadline=None)
def test_every_type_that_can_be_written_is_read_as_arrow_prints_it(text: str) -> None:
    kind = parse_type(text)
    assert parse_type(str(kind)) == kind
    if "struct" not in text and "list" not in text:
        assert str(kind).replace(" ", "") in (text.replace(" ", ""), str(tables._SCALARS.get(text)))


@pytest.mark.parametrize("text", ["strnig", "list<int32", "", "list<>", "map<string, int32>"])
def test_a_type_that_is_not_known_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(ValueError, match="unknown Arrow type"):
        parse_type(text)


def test_the_wheel_is_told_to_carry_schemas_model_and_templates() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]["wheel"]
    assert wheel["packages"] == ["llava_batch"]
    assert wheel["force-include"] == {"schemas": "llava_batch/schemas"}
    assert not {"include", "exclude"} & wheel.keys(), "nothing narrows the package's own files"


def test_a_wheel_built_from_the_sources_holds_what_the_package_reads(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling")
    import zipfile

    built = next(
        builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    )
    names = set(zipfile.ZipFile(built).namelist())
    needed = {f"llava_batch/schemas/{name}.json" for name in (*NAMES, "run")}
    needed |= {
        f"llava_batch/demo/model/{name}"
        for name in ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json")
    }
    assert needed <= names
    data = {
        p
        for p in (ROOT / "llava_batch").rglob("*")
        if p.suffix in (".jinja", ".yaml", ".cpp", ".h")
    }
    data.add(ROOT / "llava_batch" / "py.typed")
    assert {str(p.relative_to(ROOT)) for p in data} <= names
    answers = zipfile.ZipFile(built).read("llava_batch/schemas/answers.json")
    assert json.loads(answers) == load_contract("answers")


KINDS = pa.table(
    {
        "text": pa.chunked_array([["a"], ["b", None]]),
        "nested": [[{"x": [1, None]}], None, []],
        "bytes": pa.array([b"1", b"", None], pa.large_binary()),
        "word": pa.array(["p", "q", "p"]).dictionary_encode(),
        "time": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
    }
)


@pytest.mark.parametrize("rows", [KINDS, KINDS.slice(1, 1), KINDS.slice(0, 0)])
def test_a_packed_batch_is_one_row_and_unpacked_it_is_what_it_was(rows: pa.Table) -> None:
    batch = packed(rows)
    assert batch.num_rows == 1
    assert unpacked(batch).schema == rows.schema and unpacked(batch).equals(rows)
    two = unpacked(pa.concat_tables([batch, packed(KINDS)]).slice(0, 2))
    assert two.to_pylist() == rows.to_pylist() + KINDS.to_pylist()
