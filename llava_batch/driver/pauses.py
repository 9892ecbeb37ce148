"""Pauses between Ray Data's looks at its tasks, where what looking takes is taken from the engine.

Ray Data's loop in the driver looks at every task ten times a second, and each look takes 2 to 3 ms of a core: on two
cores that are the engine as well, a hundredth of its speed (benchmarks/LOG.md, November 30). Answers come by the second.
"""

import time
from typing import Any

import ray
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

SHARE = 0.01
"""A pause is at most this share of the time that has passed."""
LONGEST_S = 0.5
"""What no task's news ends early, a lost node say, is seen so late."""


def set_up(context: DataContext, *, on_gpu: bool) -> None:
    """Have what is executed by `context` pause, unless the engine's work is on a GPU."""
    others = [each for each in context.custom_execution_callback_classes if each is not Pauses]
    context.custom_execution_callback_classes = others + ([] if on_gpu else [Pauses])


class Pauses(ExecutionCallback):  # type: ignore[misc]
    """What Ray Data calls after each look, in the loop's own thread."""

    def before_execution_starts(self, executor: Any) -> None:
        self._began = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        until_news(executor, min(LONGEST_S, SHARE * (time.monotonic() - self._began)))


def until_news(executor: Any, longest_s: float) -> None:
    """Wait until a task has something new, at most so long.

    What an earlier task has ready may be left there until the later ones have room for it, and is no news then; what
    the last ones have ready is wanted at once.
    """
    operators = [*executor._topology]
    *earlier, last = [[t.get_waitable() for t in op.get_active_tasks()] for op in operators]
    every = [*last, *(task for tasks in earlier for task in tasks)]
    ready, waiting = ray.wait(every, num_returns=len(every), timeout=0, fetch_local=False)
    if waiting and not {*ready} & {*last}:
        ray.wait(waiting, timeout=longest_s, fetch_local=False)
