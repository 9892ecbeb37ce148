"""Metrics for Prometheus, through `ray.util.metrics`; Ray exports them with a `ray_` in front.

llava_batch_images, _rows, _errors{code}, _answer_tokens, _prompt_tokens   counted by the driver
llava_batch_stage_rows{stage}, _stage_busy_seconds{stage}                   counted by the workers
llava_batch_slot_occupancy                                                  a worker's share of full slots
"""

from typing import Any

from ray.util.metrics import Counter, Gauge

_PREFIX = "llava_batch_"


class RunMetrics:
    """What the driver counts, brought up to date from its tally."""

    def __init__(self) -> None:
        self._counters = {
            name: Counter(_PREFIX + name, description)
            for name, description in (
                ("images", "Images answered."),
                ("rows", "Answer rows, ok or in error."),
                ("answer_tokens", "Tokens generated."),
                ("prompt_tokens", "Tokens of prompts, image tokens counted."),
            )
        }
        self._errors = Counter(_PREFIX + "errors", "Rows in error.", tag_keys=("code",))
        self._said: dict[str, int] = {}

    def update(self, tally: Any) -> None:
        """Add what the tally has grown by since the last time."""
        for name, counter in self._counters.items():
            self._grow(counter, name, getattr(tally, name), {})
        for code, count in tally.errors.items():
            self._grow(self._errors, f"errors/{code}", count, {"code": code})

    def _grow(self, counter: Counter, key: str, total: int, tags: dict[str, str]) -> None:
        more = total - self._said.get(key, 0)
        if more > 0:
            counter.inc(more, tags)
            self._said[key] = total


class StageMetrics:
    """What one worker counts of its stage."""

    def __init__(self, stage: str) -> None:
        self._tags = {"stage": stage}
        self._rows = Counter(_PREFIX + "stage_rows", "Rows through a stage.", tag_keys=("stage",))
        self._busy = Counter(
            _PREFIX + "stage_busy_seconds", "Seconds a stage worked.", tag_keys=("stage",)
        )
        self._slots = Gauge(_PREFIX + "slot_occupancy", "Share of slots that decode, over the run.")

    def add(self, num_rows: int, busy_s: float, counters: dict[str, float]) -> None:
        """`num_rows` more rows in `busy_s` more seconds; `counters` are the worker's totals."""
        if num_rows > 0:
            self._rows.inc(num_rows, self._tags)
        if busy_s > 0:
            self._busy.inc(busy_s, self._tags)
        if counters.get("slot_steps"):
            self._slots.set(counters["occupied_slot_steps"] / counters["slot_steps"])
