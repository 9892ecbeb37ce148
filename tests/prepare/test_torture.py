"""Odd and broken image files from Pillow's, wuffs' and others' own tests: each one's verdict is known.

They lie outside the repository: `LLAVA_BATCH_TORTURE` names the folder with `torture.jsonl`.
"""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from llava_batch.errors import RowError
from llava_batch.job import Job
from llava_batch.prepare.pixels import BadImage, configure_pillow, decode

FOLDER = Path(os.environ.get("LLAVA_BATCH_TORTURE", "nowhere"))
MOST_MEMORY_BYTES = 3 * 2**30

DIFFERENT = {
    # The EXIF block is broken and Pillow raises where it is asked for; the pixels are sound, so the
    # image is taken as upright.
    "wuffs__test__data__artificial-png__exif.png": "ok",
}

pytestmark = pytest.mark.skipif(
    not (FOLDER / "torture.jsonl").is_file(), reason="LLAVA_BATCH_TORTURE names no folder of them"
)


def verdict(data: bytes, job: Job) -> tuple[str, tuple[int, int] | None]:
    try:
        return "ok", decode(data, job.max_pixels).size
    except BadImage as error:
        assert isinstance(error.code, RowError) and str(error)
        return "error", None


def test_every_file_has_the_verdict_that_is_known_of_it_within_bounded_memory(capsys):
    job = Job()
    configure_pillow(max_pixels=job.max_pixels, allow_truncated=False)
    records = [json.loads(line) for line in (FOLDER / "torture.jsonl").open()]
    different: dict[str, tuple[Any, Any]] = {}
    for record in records:
        found, size = verdict((FOLDER / "torture" / record["file"]).read_bytes(), job)
        wanted = DIFFERENT.get(record["file"], record["outcome"])
        if found != wanted:
            different[record["file"]] = (found, record)
        elif found == "ok" and list(size or ()) != (record["size_after_exif"] or list(size or ())):
            different[record["file"]] = (size, record["size_after_exif"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with capsys.disabled():
        print(f"\n{len(records)} files, peak memory of the process {peak / 2**20:.0f} MiB")
    assert different == {}
    assert peak < MOST_MEMORY_BYTES
