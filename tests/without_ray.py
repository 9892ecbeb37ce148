"""The actors' classes in the test's own process, where no Ray runs."""

from typing import Any

import pytest
import ray

from llava_batch.workers import counters, place
from llava_batch.workers.shared_state import SharedState


class LocalState:
    """The shared state in this process: what `.remote` gives is the value itself."""

    def __init__(self) -> None:
        self.state = SharedState(set)  # no node dies

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.state, name)

        class Remote:
            @staticmethod
            def remote(*args: Any) -> Any:
                return method(*args)

        return Remote


class NoMetrics:
    def __init__(self, stage: str) -> None:
        pass

    def add(self, num_rows: int, busy_s: float, counters: dict[str, float]) -> None:
        pass


def go_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of a `LocalState` is there at once, and no metrics are exported."""
    monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(ray, "wait", lambda values, timeout=None: (values, []))
    monkeypatch.setattr(place, "node_id", lambda: "here")
    monkeypatch.setattr(place, "num_threads", lambda shared, workers_per_node: 2)
    monkeypatch.setattr(counters, "StageMetrics", NoMetrics)
