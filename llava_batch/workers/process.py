"""What every worker does with its own process: end it where it hangs, keep the collector off its heap."""

import faulthandler
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def watchdog(stall_timeout_s: float) -> Iterator[Callable[[], None]]:
    """A block that takes longer ends the process, every thread's stack written; Ray starts it anew.

    What the block gets to call says that it goes on, and starts its time anew. The timer is one in C, and
    the process's only one: it fires even where a stuck call holds the interpreter's lock, and two
    blocks at once must not be watched.
    """
    start = partial(faulthandler.dump_traceback_later, stall_timeout_s, exit=True)
    start()
    try:
        yield start
    finally:
        faulthandler.cancel_dump_traceback_later()


def freeze_heap() -> None:
    """What is loaded stays until the process ends: take every object of now out of the garbage
    collector's sight. Call it once all is loaded.

    With torch and transformers in memory there are half a million: a full collection takes 0.2 s in
    the middle of the work, and the interpreter's end, which collects too, 1.2 s of a core instead of 0.2.
    """
    gc.collect()  # or what loading left behind would stay as well
    gc.freeze()
