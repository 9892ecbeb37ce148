"""An output folder as a run leaves it, made from a few dictionaries."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

from llava_batch.tables import load_schema


def good(
    key: str, answer: str, question: str = "Describe the image.", **more: Any
) -> dict[str, Any]:
    """An answered row of unit 00000; `more` overrides columns."""
    row = {
        "unit": "00000", "key": key, "question_id": None, "num_images": 1, "width": 640,
        "height": 480, "prompt": f"USER: <image>\n{question} ASSISTANT:", "answer": answer,
        "finish_reason": "stop", "prompt_tokens": 600, "answer_tokens": len(answer.split()),
        "mean_logprob": -0.25, "status": "ok", "error_code": None, "error_message": None,
    } | more  # fmt: skip
    turn = {"question": question, **{n: row[n] for n in ("answer", "finish_reason", "answer_tokens", "mean_logprob")}}  # fmt: skip
    return {"id": _id(row), "turns": [turn]} | row


def bad(key: str, code: str, message: str, **more: Any) -> dict[str, Any]:
    """A row in error of unit 00000."""
    row = {"unit": "00000", "key": key, "question_id": None, "num_images": 1, "status": "error",
           "error_code": code, "error_message": message} | more  # fmt: skip
    return {"id": _id(row)} | row


def write_folder(
    out: Path,
    rows: Iterable[dict[str, Any]],
    *,
    name: str = "00000",
    format: str = "parquet",
    run: dict[str, Any] | None = None,
    thumbnails: Iterable[str] = (),
) -> str:
    """Write the rows as one table of `out`, with `_run.json` and thumbnails where given."""
    out.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=load_schema("answers"))
    if format == "parquet":
        pq.write_table(table, out / f"{name}.parquet")
    else:
        with pa.ipc.new_file(out / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
    if run is not None:
        (out / "_run.json").write_text(json.dumps(run))
    names = list(thumbnails)
    if names:
        columns = {"image": names, "jpeg": [jpeg() for _ in names]}
        pq.write_table(pa.table(columns), out / "_thumbnails.bin")
    return str(out)


def jpeg(colour: tuple[int, int, int] = (90, 140, 120), size: tuple[int, int] = (64, 48)) -> bytes:
    """A small picture of one colour, encoded."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


def _id(row: dict[str, Any]) -> str:
    base = f"{row['unit']}/{row['key']}"
    return base if row["question_id"] is None else f"{base}#{row['question_id']}"
