"""The engine's thread: answers reach whoever waits, however fast they come."""

import asyncio
import threading
import time

from llava_batch.engine import Completion, Request
from llava_batch.generate.engine_thread import EngineLoop


class Refusing:
    """An engine that refuses every request in the next step."""

    def __init__(self) -> None:
        self._done: list[Completion] = []

    @property
    def has_work(self) -> bool:
        return bool(self._done)

    def submit(self, request: Request) -> None:
        self._done.append(Completion(id=request.id, finish_reason="error", error_code="bad_prompt"))

    def step(self, *_) -> list[Completion]:
        done, self._done = self._done, []
        return done


def test_a_request_that_is_refused_before_its_asker_looks_again_is_still_answered() -> None:
    loop = EngineLoop(Refusing, stall_timeout_s=60.0)  # type: ignore[arg-type]
    wake = loop._wake.set

    def wake_and_look_away() -> None:
        wake()
        while loop._waiting:
            time.sleep(0.001)

    loop._wake.set = wake_and_look_away  # type: ignore[method-assign]

    async def ask() -> list:
        asked = (loop.answer(Request(id=str(n))) for n in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    assert [answer for answer in found if not isinstance(answer, list)] == []
    assert [answer[0].error_code for answer in found] == ["bad_prompt"] * 3


def test_an_id_in_flight_is_asked_once_and_answers_all_who_wait_for_it() -> None:
    loop = EngineLoop(Refusing, stall_timeout_s=60.0)  # type: ignore[arg-type]
    submitted, all_asked = [], threading.Event()
    submit, step = loop.engine.submit, loop.engine.step
    loop.engine.submit = lambda request: submitted.append(request.id) or submit(request)  # type: ignore
    loop.engine.step = lambda *_: all_asked.wait() and step()

    async def ask() -> list[list[Completion]]:
        waiting = [asyncio.ensure_future(loop.answer(Request(id="same"))) for _ in range(5)]
        await asyncio.sleep(0)  # each has asked
        all_asked.set()
        return await asyncio.gather(*waiting)

    assert [answer[0].id for answer in asyncio.run(ask())] == ["same"] * 5
    assert submitted == ["same"]
