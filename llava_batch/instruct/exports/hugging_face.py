"""A Hugging Face dataset: Parquet with an Image feature, and a card that says how it was made.

One row for each conversation, so an image with several is stored several times. The card's facts
come from the metadata that the run put into its tables.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.instruct.exports.pairs import Pairs
from llava_batch.storage import locate, whole_file, write_whole

_TEXT = {"dtype": "string", "_type": "Value"}
_FEATURES = {
    "id": _TEXT,
    "image": {"_type": "Image"},
    "conversations": [{"from": _TEXT, "value": _TEXT}],
    "answer": _TEXT,
}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ("answer", pa.string()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
"""The columns, and what the `datasets` library needs to see images in them."""

_BATCH_ROWS = 64


def export_hugging_face(
    pairs: Pairs, output: str, *, title: str, counts: Mapping[str, int] | None = None
) -> int:
    """Write `<output>/data/<unit>.parquet` and the card `<output>/README.md`; returns the number of
    rows. `counts` (of `write_instructions`) go into the card. `output` may be a URI."""
    total = 0
    for unit, unit_pairs in pairs.units():
        rows = (
            {
                "id": said.id,
                "image": {"bytes": pair.image, "path": f"{pair.key}"},
                "conversations": said.conversations,
                "answer": said.answer,
            }
            for pair in unit_pairs
            for said in pair.said
        )
        total += _write_unit(f"{output.rstrip('/')}/data/{unit}.parquet", rows)
    metadata = pairs.answers.schema.metadata or {}
    write_card(output, title=title, rows=total, metadata=metadata, counts=counts)
    return total


def _write_unit(path: str, rows: Iterator[dict[str, Any]]) -> int:
    batch = list(islice(rows, _BATCH_ROWS))
    if not batch:
        return 0
    count = 0
    at = locate(path)
    with whole_file(at.fs, at.path) as stream, pq.ParquetWriter(stream, SCHEMA) as writer:
        while batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
            count += len(batch)
            batch = list(islice(rows, _BATCH_ROWS))
    return count


def write_card(
    output: str,
    *,
    title: str,
    rows: int,
    metadata: Mapping[bytes, bytes],
    counts: Mapping[str, int] | None,
) -> None:
    """The dataset card: how to load it, what made it (every `llava_batch.` entry of the tables'
    metadata: model, revision, prompts, settings, versions), and what became of the rows."""
    made_by = {
        key.decode().removeprefix("llava_batch."): value.decode()
        for key, value in metadata.items()
        if key.startswith(b"llava_batch.")
    }
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/**/*.parquet",
        "tags:",
        "- synthetic",
        "- llava",
        "---",
        "",
        f"# {title}",
        "",
        f"Conversations about images: {rows}, written by a model and not checked by people.",
        "Each row has the image, the conversation in LLaVA's form, and its last answer.",
        "",
        "## How it was made",
        "",
        *_table(("setting", "value"), _flat(made_by)),
    ]
    if counts:
        lines += ["", "## What became of the answers", "", *_table(("", "rows"), counts)]
    target = locate(output)
    text = "\n".join(lines) + "\n"
    write_whole(target.fs, f"{target.path}/README.md", text.encode())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings (also those that stand as JSON text) as `a.b` → value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        value = _parsed(value)
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _parsed(value: Any) -> Any:
    """JSON objects and lists that stand as text, parsed; any other value as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    shown = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *shown]


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", "<br>")
