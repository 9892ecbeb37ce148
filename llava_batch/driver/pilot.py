"""Pilot: the answers of a sample's rows, taken in as they come, and what they say of all others.

The rows were drawn in runs (`read.sample`); figures are by their variance from run to run. Neither a clock
nor Ray: whoever runs the pilot says when a batch came.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from llava_batch.driver.remaining import Interval, Pace, total
from llava_batch.read.sample import RUN_ROWS

SETTLED_S = 3.0
"""From the first answers on: meanwhile processes of the other stages still start on the same machine, and an image
takes up to twice as long (benchmarks/LOG.md). What these seconds cost more counts as start-up."""
STEADY_S = 8.0
STEADY_ARRIVALS = 8
STEADY_RATIO = 1.8
"""A pilot is over once its images are in and they have come for so long after that, in so many batches, and the upper
bound of what an image takes is at most so many times the lower …"""
MOST_S = 60.0
"""… or so long after the first have come."""
MOST_ROWS = 64
"""A pilot reads up to so many times the rows that it is to have, to be watched for long enough."""


@dataclass
class _Run:
    """What came of one run of the sample."""

    images: int = 0
    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    expected: int | None = None
    """Images that were read of it, once that is known."""
    waiting: dict[int, int] = field(default_factory=dict)
    """Rows that have come of images that lack some."""

    @property
    def is_whole(self) -> bool:
        return self.expected is not None and self.images >= self.expected


class Pilot:
    """Takes in the answers of the sample's rows as they come, `Unix time` with each batch."""

    def __init__(self, num_runs: int, images: int) -> None:
        self._runs = [_Run() for _ in range(num_runs)]
        self._wanted = images
        self._num_images = 0
        self._all = Pace(window_s=2 * MOST_S)
        self._settled = Pace(window_s=2 * MOST_S)
        self._begun_at = math.inf
        self.problem = ""
        """Why a run could not be read, if one could not."""

    def add(self, batch: pa.Table, at: float) -> None:
        """Take in answer rows that came at Unix time `at`."""
        names = ("unit", "ordinal", "siblings", "end", "error_code", "error_message",
                 "prompt_tokens", "turns")  # fmt: skip
        for row in batch.select(names).to_pylist():
            if row["end"]:
                self._runs[int(row["unit"])].expected = row["ordinal"]
                self.problem = row["error_message"] or self.problem
            else:
                self._count(row)
        self._all.note(at, self._num_images)
        if self._all.num_arrivals == 0:
            self._begun_at = self._all.first[0] or math.inf
        if at - self._begun_at >= SETTLED_S:
            self._settled.note(at, self._num_images)

    @property
    def pace(self) -> Pace:
        """How fast images come, once all has started; of a pilot that was over soon after, in all."""
        is_long = self._settled.seconds >= self._all.seconds / 2 > 0
        return self._settled if is_long else self._all

    def _count(self, row: dict[str, Any]) -> None:
        run, ordinal = self._runs[row["ordinal"] // RUN_ROWS], row["ordinal"]
        come = run.waiting[ordinal] = run.waiting.get(ordinal, 0) + 1
        if come >= row["siblings"]:
            del run.waiting[ordinal]
            run.images += 1
            self._num_images += 1
        if row["siblings"]:
            run.rows += 1
            run.errors += row["error_code"] is not None
            run.prompt_tokens += row["prompt_tokens"] or 0
            run.answer_tokens += sum(turn["answer_tokens"] for turn in row["turns"] or [])

    @property
    def whole(self) -> list[_Run]:
        """The first runs in the order drawn, up to one that is not whole: whether a run is among them does
        not depend on how long its answers are."""
        count = next((i for i, run in enumerate(self._runs) if not run.is_whole), len(self._runs))
        return self._runs[:count]

    @property
    def is_all(self) -> bool:
        """Whether every run is whole."""
        return len(self.whole) == len(self._runs)

    @property
    def images(self) -> int:
        return sum(run.images for run in self.whole)

    def is_enough(self, now: float) -> bool:
        """Whether nothing more need be answered: all images that were asked for are in, and have come
        for long enough to tell the pace."""
        if self.images < self._wanted or not self._all.num_arrivals:
            return False
        return self._is_steady() or now - self._begun_at >= MOST_S

    def _is_steady(self) -> bool:
        if self._settled.seconds < STEADY_S or self._settled.num_arrivals < STEADY_ARRIVALS:
            return False
        each = self._settled.seconds_per_image()
        return each is not None and each.high <= STEADY_RATIO * each.low

    def of(self, name: str, images: Interval) -> Interval:
        """A quantity (`rows`, `answer_tokens` …) of `images` like those of the pilot."""
        runs = self.whole
        if not images.value:
            return Interval.exactly(0)
        clusters = [(run.images, getattr(run, name)) for run in runs if run.images]
        if self.is_all and images.is_exact:
            drawn = sum(size for size, _ in clusters)
            if drawn >= images.value:
                return Interval.exactly(sum(n for _, n in clusters) * images.value / drawn)
        return total(clusters, images.value).times(1 / images.value) * images
