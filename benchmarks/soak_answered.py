#!/usr/bin/env python3
"""A captioning job that leaves word of each answer that reached its driver, and the count of those that came twice.

    benchmarks/soak_answered.py FILE --input … --output …     `jobs/caption.py`, with the ids in FILE

Each batch's ids are appended to FILE in one write before anything is done with them: what a SIGKILL
leaves there is what the driver had. Answers that a worker had and the driver had not are not counted.
"""

import sys
import time
from pathlib import Path


def main() -> None:
    """Run the job that the arguments name."""
    path = sys.argv.pop(1)
    from llava_batch.cli.jobs import job_main
    from llava_batch.write.committer import Committer

    take_in = Committer.add
    with open(path, "ab", buffering=0) as file:

        def add(self, batch):
            ids = [ident for ident in batch["id"].to_pylist() if ident is not None]
            file.write("".join(f"{time.time():.3f}\t{ident}\n" for ident in ids).encode())
            return take_in(self, batch)

        setattr(Committer, "add", add)  # noqa: B010 mypy takes no other way
        job_main("caption")


def answered(path: Path) -> dict[str, float]:
    """The ids that reached the driver of one run, each with when it first did."""
    first: dict[str, float] = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        moment, _, ident = line.partition("\t")
        first.setdefault(ident, float(moment))
    return first


if __name__ == "__main__":
    main()
