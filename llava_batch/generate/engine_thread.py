"""EngineLoop: one engine kept stepping in a thread, fed by any number of coroutines.

Knows the engine and asyncio; nothing of Ray, Arrow or rows.
"""

import asyncio
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from llava_batch.engine import Completion, Engine, Request
from llava_batch.workers.process import watchdog


@dataclass
class _Waiting:
    """A request in flight: who waits for it, and what has come so far."""

    future: asyncio.Future[list[Completion]]
    expected: int
    have: list[Completion] = field(default_factory=list)


class EngineLoop:
    """One engine, stepping in a thread of its own; requests come from any number of coroutines.

    An exception in the engine, or `stall_timeout_s` without progress in a step, ends the process:
    what the device holds then is not to be trusted, and Ray starts the actor anew.
    """

    def __init__(self, load: Callable[[], Engine], *, stall_timeout_s: float) -> None:
        """Load the engine and start to step it, both in the loop's thread.

        OpenMP keeps threads for every thread that computed once, and stops to spin for work when
        they are more than the cores: loading elsewhere made every step a fifth slower.
        """
        self.engine: Engine
        self.busy_s = 0.0
        self._load = load
        self._stall_timeout_s = stall_timeout_s
        self._inbox: deque[Request] = deque()
        self._waiting: dict[str, _Waiting] = {}
        self._wake = threading.Event()
        loaded: Future[None] = Future()
        threading.Thread(target=self._run, args=(loaded,), name="engine", daemon=True).start()
        loaded.result()

    async def answer(self, request: Request) -> list[Completion]:
        """All completions of `request`; one of an id that is in flight waits for that one's."""
        # The thread strikes a request off as soon as it is answered: it is looked up once.
        waiting = self._waiting.get(request.id)
        if waiting is None:
            expected = 1 if request.choices else (1 + len(request.turns)) * request.num_samples
            waiting = _Waiting(asyncio.get_running_loop().create_future(), expected)
            self._waiting[request.id] = waiting
            self._inbox.append(request)
            self._wake.set()
        return await asyncio.shield(waiting.future)

    def _run(self, loaded: Future[None]) -> None:
        try:
            self.engine = self._load()
        except Exception as error:  # noqa: BLE001 it is the constructor's to raise
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        self._step_for_ever()

    def _step_for_ever(self) -> None:
        try:
            while True:
                if not self._inbox and not self.engine.has_work:
                    self._wake.wait()
                self._wake.clear()
                while self._inbox:
                    self.engine.submit(self._inbox.popleft())
                for completion in self._step():
                    self._deliver(completion)
        except BaseException:  # noqa: BLE001 nobody joins this thread: silence would be a hang
            traceback.print_exc()
            os._exit(1)

    def _step(self) -> list[Completion]:
        started = time.perf_counter()
        try:
            with watchdog(self._stall_timeout_s) as still_going:
                ended: list[Completion] = self.engine.step(on_progress=still_going)
                return ended
        finally:
            self.busy_s += time.perf_counter() - started

    def _deliver(self, completion: Completion) -> None:
        waiting = self._waiting[completion.id]
        waiting.have.append(completion)
        if len(waiting.have) == waiting.expected:
            del self._waiting[completion.id]
            waiting.future.get_loop().call_soon_threadsafe(waiting.future.set_result, waiting.have)
