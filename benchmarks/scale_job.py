"""The whole pipeline with an engine that answers at once: a measure of `scale.py`."""

import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from llava_batch.engine import Completion
from llava_batch.engine.stats import Stats
from llava_batch.generate.actor import Generate

NUM_UNITS = 10
ROWS_OF_UNIT = int(os.environ.get("SCALE_ROWS", 2000))


class Answers:
    """In the place of the engine's thread."""

    busy_s = 0.0
    engine = SimpleNamespace(stats=Stats())

    async def answer(self, request: Any) -> list[Completion]:
        return [Completion(id=request.id, token_ids=(5, 6, 7), mean_logprob=-1.0)]


class AtOnce(Generate):
    """The generating actor without an engine: all that is around it."""

    def __init__(
        self, job: Any, shared: Any, workers_per_node: int, slot_tokens: int | None = None
    ) -> None:
        from llava_batch.checkpoint import Checkpoint
        from llava_batch.generate.shared_lock import Gate
        from llava_batch.workers.counters import Counters
        from llava_batch.workers.crash_guard import CrashGuard

        self._job, self._checkpoint = job, Checkpoint.find(job)
        self._choices, self._constraint = [], None
        self._loop: Any = Answers()
        self._guard = CrashGuard(shared, "generate", job.max_tries)
        self._counters, self._gate = Counters(shared, "generate"), Gate()
        self._counters.ready()


def job() -> dict[str, Any]:
    """Rows a second from tars to tables, small JPEGs decoded for the demo model; the driver's own seconds."""
    import ray.cloudpickle

    from llava_batch.driver import cluster
    from llava_batch.generate import actor
    from llava_batch.job import Job
    from llava_batch.pipeline import run

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know no benchmarks
    actor.Generate = AtOnce  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="scale") as folder, cluster.connected():
        for number in range(NUM_UNITS):
            _tar(Path(folder) / "in" / f"{number:05}.tar", number)
        run(Job(input=(f"{folder}/in/00000.tar",), output=f"{folder}/warm", quiet=True))
        cpu, started = time.process_time(), time.perf_counter()
        said = run(Job(input=(f"{folder}/in",), output=f"{folder}/out", quiet=True))
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        rate = said.throughput["answers_per_s"]
        num_rows = NUM_UNITS * ROWS_OF_UNIT
        assert said.run["rows"] == num_rows, said.run
        return {
            "job_rows_per_s": round(rate),  # since the first answer
            "job_s": round(wall_s, 1),
            "job_driver_cpu_us_per_row": round(cpu_s / num_rows * 1e6),
            "job_driver_carries_rows_per_s": round(num_rows / cpu_s),
            "job_cpus": os.cpu_count(),
        }


def _tar(path: Path, seed: int) -> None:
    """A tar of small JPEGs, of 64 pictures in turn."""
    noise = np.random.default_rng(seed)
    pictures = []
    for _ in range(64):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 255, (112, 112, 3), np.uint8)).save(file, "JPEG")
        pictures.append(file.getvalue())
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(ROWS_OF_UNIT):
            data = pictures[number % len(pictures)]
            member = tarfile.TarInfo(f"{number:08}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


MEASURES: dict[str, Callable[[], dict[str, Any]]] = {"job": job}
