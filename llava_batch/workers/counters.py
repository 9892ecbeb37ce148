"""Counters: what a worker counts of its own, told to the shared state after each batch, and to Prometheus."""

import resource
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llava_batch.workers.prometheus import StageMetrics


class Counters:
    """One worker of one stage: `rows`, `busy_s`, and what else the stage counts."""

    def __init__(self, shared: Any, stage: str) -> None:
        self._shared = shared
        self._stage = stage
        self._worker = uuid.uuid4().hex
        self._counters: dict[str, float] = {"rows": 0, "busy_s": 0.0}
        self._metrics = StageMetrics(stage)

    @contextmanager
    def busy(self, rows: list[dict[str, Any]]) -> Iterator[None]:
        """The block's time counts as busy, for the images among `rows` as they stand at its end."""
        started = time.perf_counter()
        yield
        busy_s = self._counters["busy_s"] + time.perf_counter() - started
        self.add(sum(not row["end"] for row in rows), busy_s=busy_s)

    def add(self, num_rows: int, **counters: float) -> None:
        """`num_rows` more rows; the other counters are totals, and replace what was."""
        grown_s = counters.get("busy_s", 0.0) - self._counters["busy_s"]
        self._counters |= counters
        self._counters["rows"] += num_rows
        self._metrics.add(num_rows, grown_s, self._counters)
        self._tell()

    def ready(self) -> None:
        """The worker has loaded what it needs, and waits for its first rows."""
        self._counters["first_ready_at"] = time.time()
        self._tell()

    def _tell(self) -> None:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._counters["peak_memory_bytes"] = peak_kib * 1024
        self._shared.report.remote(self._stage, self._worker, self._counters)
