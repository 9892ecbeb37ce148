"""Damaged and odd Parquet files and tars of other projects: each is rows, and nothing is raised.

They lie outside the repository, beside the images of `LLAVA_BATCH_TORTURE`.
"""

import os
from pathlib import Path

import pytest

from llava_batch.errors import RowError
from llava_batch.job import Job
from llava_batch.prepare.pixels import BadImage, configure_pillow, decode
from llava_batch.read.find import find_units
from llava_batch.read.kinds import first_row
from llava_batch.read.source import read_blocks
from tests.shards import reading

FOLDER = Path(os.environ.get("LLAVA_BATCH_TORTURE", "nowhere")) / "shards"
SHARDS = sorted(FOLDER.glob("*")) if FOLDER.is_dir() else []

pytestmark = pytest.mark.skipif(not SHARDS, reason="LLAVA_BATCH_TORTURE names no folder of them")


@pytest.mark.timeout(600)
def test_every_shard_is_read_to_its_end_and_each_of_its_rows_is_settled():
    job = Job()
    configure_pillow(max_pixels=job.max_pixels, allow_truncated=False)
    num_rows = 0
    for path in SHARDS:
        for unit in find_units([str(path)]):
            columns = first_row(unit, reading())
            blocks = [*read_blocks(unit, reading(None, *columns))]
            *rows, end = [row for block in blocks for row in block.to_pylist()]
            assert end["end"] and end["error_code"] is None, (path.name, end["error_message"])
            names = {(r["key"], r["mark"]) for r in rows}
            assert len(names) == len(rows) == end["ordinal"], path.name
            for row in rows:
                assert bool(row["images"]) != (row["error_code"] in {*RowError}), path.name
                for image in row["images"] or ():
                    try:
                        decode(image, job.max_pixels)
                    except BadImage as error:
                        assert error.code in {*RowError}
            num_rows += len(rows)
    assert num_rows >= len(SHARDS) / 2
