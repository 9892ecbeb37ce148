"""Made-up answer rows as they reach the committer, and folders that look as if they had been answered."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from llava_batch.generate.answer_rows import generated_schema
from llava_batch.storage import Location
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger

EMPTY = pa.schema([])
RUN = {"model": "none"}
ANSWER = ("A wide street in the evening light, with a row of parked cars on the left and two people who "
          "carry umbrellas; the shop behind them has a red awning and its lamps are on already.")  # fmt: skip
"""Of a caption's usual length: a row then weighs 0.6 KB in memory."""


def ledger_at(out: Location) -> Ledger:
    """The folder's ledger, read, for a run of made-up settings."""
    ledger = Ledger(out, "parquet")
    ledger.load()
    ledger.answer_under({"prompt": "x"}, "0123456789abcdef", 1, as_before=ledger.held is not None)
    return ledger


def units_of(count: int) -> list[Unit]:
    return [
        Unit(
            name=f"{number:06d}",
            kind="tar",
            path=f"/in/{number:06d}.tar",
            shown=f"{number:06d}.tar",
            fs=pafs.LocalFileSystem(),
            source="1-1",
        )
        for number in range(count)
    ]


def batches(names: list[str], rows: int, *, at_once: int, batch_rows: int) -> Iterator[pa.Table]:
    """The rows of these units, `rows` of each, with their end rows; a batch of `batch_rows` holds rows of
    `at_once` units in turn."""
    schema = generated_schema([])
    for start in range(0, len(names), at_once):
        group = names[start : start + at_once]
        total = rows * len(group)
        for first in range(0, total, batch_rows):
            numbers = np.arange(first, min(first + batch_rows, total))
            yield _rows([group[n % len(group)] for n in numbers], numbers // len(group), schema)
        ends = [
            {"unit": n, "ordinal": rows, "position": 0, "siblings": 0, "end": True} for n in group
        ]
        yield pa.Table.from_pylist(ends, schema=schema)


def _rows(units: list[str], ordinals: np.ndarray, schema: pa.Schema) -> pa.Table:
    keys = [f"{ordinal:09d}" for ordinal in ordinals]
    count = len(units)
    turn = {"question": "Describe the image.", "answer": ANSWER, "finish_reason": "stop",
            "answer_tokens": 40, "mean_logprob": -0.5}  # fmt: skip
    made: dict[str, Any] = {
        "id": [f"{unit}/{key}" for unit, key in zip(units, keys, strict=True)],
        "unit": units,
        "key": keys,
        "num_images": [1] * count,
        "image_sha256": [f"{ordinal:064x}" for ordinal in ordinals],
        "width": [640] * count,
        "height": [480] * count,
        "turns": [[turn]] * count,
        "prompt": ["USER: <image>\nDescribe the image. ASSISTANT:"] * count,
        "answer": [ANSWER] * count,
        "finish_reason": ["stop"] * count,
        "prompt_tokens": [600] * count,
        "answer_tokens": [40] * count,
        "mean_logprob": [-0.5] * count,
        "status": ["ok"] * count,
        "ordinal": ordinals,
        "position": [0] * count,
        "siblings": [1] * count,
        "end": [False] * count,
    }
    columns = [
        pa.array(made[field.name], field.type)
        if field.name in made
        else pa.nulls(count, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def lay_tars(folder: Path, count: int) -> None:
    """So many tars of one tiny image each, a thousand to a folder."""
    import io
    import tarfile

    from PIL import Image

    image, tar = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    with tarfile.open(fileobj=tar, mode="w") as file:
        info = tarfile.TarInfo("0.png")
        info.size = len(image.getvalue())
        file.addfile(info, io.BytesIO(image.getvalue()))
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"{number:06d}.tar"
        if not number % 1000:
            path.parent.mkdir(parents=True)
        path.write_bytes(tar.getvalue())
