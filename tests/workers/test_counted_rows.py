"""What the stages count are images: the row that ends a unit is none."""

import asyncio

import pyarrow as pa
import pytest

from llava_batch.generate.actor import Generate
from llava_batch.job import Job
from llava_batch.prepare.actor import Prepare
from llava_batch.read.columns import image_schema
from tests.shards import picture
from tests.without_ray import LocalState, go_without_ray


def test_a_units_end_row_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    # `stages.rows` was 105 of 104 images.
    go_without_ray(monkeypatch)
    job, state = Job(slots=2, dtype="float32", max_new_tokens=2), LocalState()
    images = [
        {"unit": "u", "ordinal": n, "end": False, "key": str(n), "mark": "", "images": [picture(n)]}
        for n in range(3)
    ]
    rows = pa.Table.from_pylist(
        [*images, {"unit": "u", "ordinal": 3, "end": True}], schema=image_schema(pa.schema([]))
    )
    (prepared,) = Prepare(job, state).tables(rows)
    asyncio.run(Generate(job, state, 1).table(prepared))
    stages = state.stages.remote()
    assert {stage: said["rows"] for stage, said in stages.items()} == {"prepare": 3, "generate": 3}
