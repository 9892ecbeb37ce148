"""The engine's thread: answers reach whoever waits, however fast they come; only a standstill is a stall."""

import asyncio
import faulthandler
import threading
import time
from itertools import pairwise

import numpy as np

from llava_batch.demo import model_path
from llava_batch.engine import Completion, Engine, Request
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

    def step(self, **_) -> list[Completion]:
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
    loop.engine.step = lambda **_: all_asked.wait() and step()

    async def ask() -> list[list[Completion]]:
        waiting = [asyncio.ensure_future(loop.answer(Request(id="same"))) for _ in range(5)]
        await asyncio.sleep(0)  # each has asked
        all_asked.set()
        return await asyncio.gather(*waiting)

    assert [answer[0].id for answer in asyncio.run(ask())] == ["same"] * 5
    assert submitted == ["same"]


def test_the_watchdog_waits_for_one_group_or_one_decode_step_and_not_for_all_of_them(monkeypatch):
    events: list[str] = []

    def noted(name, work):
        def done(*given, **named):
            events.append(name)
            return work(*given, **named)

        return done

    def load() -> Engine:
        made = Engine.load(model_path(), dtype="float32", slots=6, max_tokens=256, prefill_tokens=1)
        monkeypatch.setattr(
            made._runner, "_prefill_group", noted("work", made._runner._prefill_group)
        )
        monkeypatch.setattr(made._runner, "decode", noted("work", made._runner.decode))
        return made

    arm = noted("armed", faulthandler.dump_traceback_later)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", arm)
    loop = EngineLoop(load, stall_timeout_s=60.0)
    rng = np.random.default_rng(0)

    async def ask() -> None:
        pixels = [rng.integers(0, 256, (1, 3, 112, 112), dtype=np.uint8) for _ in range(9)]
        ids = [
            1,
            *[loop.engine.llava.image_token] * loop.engine.llava.vision.features_per_tile,
            5,
            6,
        ]
        given = (
            Request(id=str(n), pixels=p, prompt_ids=ids, max_new_tokens=4)
            for n, p in enumerate(pixels)
        )
        await asyncio.gather(*map(loop.answer, given))

    asyncio.run(ask())
    assert events.count("work") >= 12
    assert ("work", "work") not in set(pairwise(events))
