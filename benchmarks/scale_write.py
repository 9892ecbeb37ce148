"""What `scale.py` measures of the writing side: the committer, and a start over a folder of many units."""

import tempfile
import time
from typing import Any

from slow_storage import SlowStorage

from llava_batch.storage import write_whole

LATENCY_S = 0.025


def puts() -> dict[str, Any]:
    """Small files written one after the other at 25 ms a request: the floor that the others stand on."""
    storage = SlowStorage(latency_s=LATENCY_S)
    with tempfile.TemporaryDirectory() as folder:
        out = storage.location(folder)
        started = time.perf_counter()
        for number in range(20):
            write_whole(out.fs, out.child(f"{number}").path, b"{}\n")
        wall_s = time.perf_counter() - started
    return {"puts_per_s": round(20 / wall_s, 1), "requests_per_put": storage.num_requests / 20}


MEASURES = {"puts": puts}
