"""Pauses between Ray Data's looks at its tasks, where what looking takes is taken from the engine.

Ray Data's loop in the driver looks at every task ten times a second, and each look takes 2 to 3 ms of a core: on two
cores that are the engine as well, a hundredth of its speed (benchmarks/LOG.md, November 30). Answers come by the second.
"""

import time
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

SHARE = 0.01
"""A pause is this share of the time that has passed: what begins or is short is not held up by more."""
LONGEST_S = 0.25
"""Well below what a worker's queue of batches (`pipeline.py`) takes on CPU."""


def set_up(context: DataContext, *, on_gpu: bool) -> None:
    """Have what is executed by `context` pause, unless the engine's work is on a GPU."""
    others = [each for each in context.custom_execution_callback_classes if each is not Pauses]
    context.custom_execution_callback_classes = others + ([] if on_gpu else [Pauses])


class Pauses(ExecutionCallback):  # type: ignore[misc]
    """What Ray Data calls after each look, in the loop's own thread."""

    def before_execution_starts(self, executor: Any) -> None:
        self._began = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(min(LONGEST_S, SHARE * (time.monotonic() - self._began)))
