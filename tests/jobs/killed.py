"""A job that is killed once a part of its rows is kept, as a process of its own: `killed.py SETTINGS`, JSON
of a `Job`'s own fields. It goes to the Ray that `RAY_ADDRESS` names.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from llava_batch.job import Job
from llava_batch.pipeline import run
from llava_batch.write import committer


def main(settings: str) -> None:
    said: dict[str, Any] = {
        n: tuple(v) if isinstance(v, list) else v for n, v in json.loads(settings).items()
    }
    job = Job(**said)
    parts = Path(job.output) / "_manifest" / "_parts"
    committer.PART_ROWS = 1  # each batch of rows is a part
    add = committer.Committer.add
    came: list[int] = []

    def add_or_die(self: committer.Committer, batch: pa.Table) -> list[str]:
        while came and not list(parts.glob("*.part")):  # a thread writes it
            time.sleep(0.01)
        if came:
            os.kill(os.getpid(), signal.SIGKILL)
        told = add(self, batch)
        if not all(batch["end"].to_pylist()):
            came.append(batch.num_rows)
        return told

    committer.Committer.add = add_or_die  # type: ignore[method-assign]
    run(job)


if __name__ == "__main__":
    main(sys.argv[1])
