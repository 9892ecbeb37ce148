"""The Arrow schemas of the tables between and after the stages, loaded from `schemas/*.json`.

The JSON files are the published contract: field, type, nullable, one sentence each. This module
turns them into `pyarrow.Schema`s and checks tables against them; it knows nothing of what fills them.
One of the files, `run.json`, is of no table: the JSON Schema of `_run.json`.
"""

import json
import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pyarrow as pa

from llava_batch.errors import UsageError

_SCALARS: dict[str, pa.DataType] = {
    **{str(kind): kind for kind in (
        pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary(),
        pa.int8(), pa.int16(), pa.int32(), pa.int64(),
        pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
        pa.float16(), pa.float32(), pa.float64(), pa.date32(), pa.date64(),
    )},
    "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(),
    "date32": pa.date32(), "date64": pa.date64(), "timestamp": pa.timestamp("us"),
}  # fmt: skip
_WITH_UNIT = re.compile(r"(timestamp|time32|time64|duration)\[(s|ms|us|ns)(?:, ?tz=([^\]]+))?\]")
_DECIMAL = re.compile(r"(decimal128|decimal256)\((\d+), ?(\d+)\)")

TYPE_NAMES = (
    "bool, string, int8 … int64, uint8 … uint64, float, double, binary, date32, timestamp[s|ms|us|ns], "
    "timestamp[us, tz=UTC], time32[s|ms], time64[us|ns], duration[s|ms|us|ns], decimal128(p, s), "
    "list<TYPE>, struct<name: TYPE, …>"
)
"""What `parse_type` knows, for a person who gave something else."""

RUN = "run"
"""The name of the one contract that is of no table."""

PACKED = "batch"
"""The one column of what `packed` makes."""

KEEP = "keep."
"""How the names of kept columns begin between the stages; the answers have them without."""

ASK = pa.struct(
    [
        ("question_id", pa.string()),
        ("questions", pa.list_(pa.string())),
        ("segments", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
        ("error_message", pa.string()),
        ("error_code", pa.string()),
    ]
)
"""One ask: its turns as texts, the conversation's segments as text and as token ids."""

PREPARED = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("ordinal", pa.int64()),
        pa.field("end", pa.bool_()),
        pa.field("key", pa.string()),
        pa.field("mark", pa.string()),
        pa.field("id_base", pa.string()),
        pa.field("num_images", pa.int32()),
        pa.field("image_sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("pixels", pa.large_binary()),
        pa.field("shapes", pa.list_(pa.list_(pa.int32()))),
        pa.field("layouts", pa.list_(pa.list_(pa.int32()))),
        pa.field("asks", pa.list_(ASK)),
        pa.field("copied", pa.bool_()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
"""What leaves: `pixels` are the bytes of a uint8 array `[t, 3, H, W]` for each image, one behind the
other, of these `shapes`; `layouts` are the grids that an image's tiles lie in (empty: it has none)."""

BOOKKEEPING = pa.schema(
    [
        pa.field("ordinal", pa.int64()),
        pa.field("position", pa.int32()),
        pa.field("siblings", pa.int32()),
        pa.field("end", pa.bool_()),
        pa.field("copied", pa.bool_()),
    ]
)
"""The image's place in its unit, the row's place among the `siblings` rows of that image (0 siblings:
nothing was asked of it), whether this is the unit's end row, and whether the image's answers stand
elsewhere and are to be copied."""


def packed(table: pa.Table) -> pa.Table:
    """A batch as one row of one column, which Ray Data neither cuts nor merges with another: it knows
    rows and bytes of a block, and would make blocks of one row, or of thousands. No column is copied
    but to join its chunks."""
    batches = table.combine_chunks().to_batches()
    rows = pa.concat_arrays([b.to_struct_array() for b in batches or _empty(table.schema)])
    return pa.table({PACKED: pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)})


def unpacked(batches: pa.Table) -> pa.Table:
    """The rows of what `packed` made, in order; no column is copied where there is one chunk."""
    chunks = [chunk.flatten() for chunk in batches[PACKED].chunks]
    return pa.Table.from_batches(
        map(pa.RecordBatch.from_struct_array, chunks),
        pa.schema([*batches.schema.field(PACKED).type.value_type]),
    )


def _empty(schema: pa.Schema) -> list[pa.RecordBatch]:
    return schema.empty_table().to_batches() or [pa.RecordBatch.from_pylist([], schema)]


def contract_names() -> list[str]:
    """The names of all that is published in `schemas/`, sorted."""
    return sorted(
        p.name.removesuffix(".json") for p in _folder().iterdir() if p.name[-5:] == ".json"
    )


def schema_names() -> list[str]:
    """The names of the published tables, sorted."""
    return [name for name in contract_names() if name != RUN]


@cache
def load_contract(name: str) -> dict[str, Any]:
    """The JSON contract called `name`: of a table its name, version, description and fields."""
    path = _folder() / f"{name}.json"
    if not path.is_file():
        raise UsageError(f"no schema called {name}; there are {', '.join(contract_names())}")
    contract: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return contract


@cache
def load_schema(name: str) -> pa.Schema:
    """The Arrow schema called `name`, with its version in the schema metadata."""
    contract = load_contract(name)
    if name == RUN:
        raise UsageError(f"no table called {name}; there are {', '.join(schema_names())}")
    columns = [
        pa.field(f["name"], parse_type(f["type"]), nullable=f["nullable"])
        for f in contract["fields"]
    ]
    return pa.schema(columns, metadata={"llava_batch.schema": f"{name}/{contract['version']}"})


def parse_type(text: str) -> pa.DataType:
    """An Arrow type from its name, such as `int32`, `list<string>` or `struct<a: int32, b: string>`,
    also as pyarrow prints it (`list<item: string>`, `timestamp[us, tz=UTC]`).

    Raises:
        ValueError: there is no such type here (`TYPE_NAMES` are).
    """
    text = text.strip()
    if text in _SCALARS:
        return _SCALARS[text]
    if match := _WITH_UNIT.fullmatch(text):
        name, unit, zone = match.groups()
        return pa.timestamp(unit, zone) if name == "timestamp" else getattr(pa, name)(unit)
    if match := _DECIMAL.fullmatch(text):
        return getattr(pa, match[1])(int(match[2]), int(match[3]))
    if text.startswith("list<") and text.endswith(">"):
        return pa.list_(parse_type(text[5:-1].removeprefix("item: ")))
    if text.startswith("struct<") and text.endswith(">"):
        pairs = (part.split(":", 1) for part in _split_top_level(text[7:-1]))
        return pa.struct([pa.field(name.strip(), parse_type(kind)) for name, kind in pairs])
    raise ValueError(f"unknown Arrow type {text!r}")


def _split_top_level(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "<[(") - (char in ">])")
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _folder() -> Traversable:
    """`schemas/` inside an installed package, or beside it in a checkout."""
    inside = files("llava_batch") / "schemas"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "schemas"
