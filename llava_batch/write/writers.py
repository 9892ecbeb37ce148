"""Writers: a few threads that put what is committed into the storage, while the next rows come in.

What a job gives, or raises, comes back on the driver's own thread, which alone changes what it knows: `settle`
hands each result to whoever asked for it. A storage that is away is waited for by the threads, with the run's
patience; the driver waits only where too much is in flight, and heeds a signal while it does.
"""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from llava_batch.patience import Patience

THREADS = 16
"""A hundred units a second at 50 ms a PUT, two PUTs a unit, take ten of them."""
_MOST_JOBS = 2 * THREADS
_MOST_BYTES = 128 * 2**20
"""Of rows in flight; more wait, but for a job that is alone."""
_POLL_S = 0.05

Job = Callable[[Patience], Any]
Then = Callable[[Callable[[], Any]], None]
"""Called with what gives, or raises, what came of the job."""


class GivenUp(Exception):
    """The run ends: a storage that is away is not waited for any more."""


class Writers:
    """Jobs in flight; each is handed the patience that it may have."""

    def __init__(self, patience: Patience, threads: int = THREADS) -> None:
        self._patience = patience
        self._ending = threading.Event()
        self._theirs = Patience(patience.seconds, self._sleep, patience.clock)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        self._flying: dict[Future[Any], tuple[Then, int]] = {}

    @property
    def is_busy(self) -> bool:
        return bool(self._flying)

    def room(self, weight: int) -> None:
        """Wait until a job of so many bytes may begin.

        Raises:
            KeyboardInterrupt: a signal has come meanwhile.
        """
        while self._flying and (
            len(self._flying) >= _MOST_JOBS
            or weight + sum(held for _, held in self._flying.values()) > _MOST_BYTES
        ):
            if not wait(self._flying, _POLL_S, FIRST_COMPLETED).done:
                self._patience.sleep(0)
            self.settle()

    def submit(self, job: Job, then: Then, weight: int = 0) -> "Future[Any] | None":
        """Have `job` done; `settle` calls `then` with what came of it. After `end` it is done here and now."""
        if self._ending.is_set():
            then(partial(job, self._theirs))
            return None
        future = self._pool.submit(job, self._theirs)
        self._flying[future] = then, weight
        return future

    def settle(self) -> None:
        """Hand on the results that there are, in the order in which they were asked for."""
        for future in [future for future in self._flying if future.done()]:
            if future in self._flying:
                then, _ = self._flying.pop(future)
                then(future.result)

    def drain(self) -> None:
        """Wait for all that is in flight.

        Raises:
            KeyboardInterrupt: a signal has come meanwhile.
        """
        while self._flying:
            if not wait(self._flying, _POLL_S, FIRST_COMPLETED).done:
                self._patience.sleep(0)
            self.settle()

    def end(self, *, cancel: bool) -> None:
        """Have what is in flight end, a storage that is away left to itself; with `cancel`, jobs that have
        not begun never do. Their results are there for `settle` then; nothing can be submitted any more."""
        self._ending.set()
        self._pool.shutdown(wait=True, cancel_futures=cancel)

    def _sleep(self, seconds: float) -> None:
        if self._ending.wait(seconds):
            raise GivenUp
