"""On CPU the driver looks at its tasks less often the longer it runs; beside a GPU as often as Ray Data does."""

from dataclasses import dataclass

import pytest
from ray.data import DataContext

from llava_batch import pipeline
from llava_batch.driver import pauses
from llava_batch.job import Job


@dataclass
class Clock:
    """Of a driver in which nothing but pauses takes time."""

    now: float = 1000.0
    slept: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept = seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pauses, "time", clock)
    return clock


@pytest.fixture
def context():
    """A copy of Ray Data's settings, current within the test."""
    with DataContext.current(DataContext.get_current().copy()):
        yield DataContext.get_current()


@pytest.mark.parametrize(("after_s", "pause_s"), [(0, 0), (2, 0.02), (20, 0.2), (3600, 0.25)])
def test_a_pause_is_a_hundredth_of_the_time_gone_and_never_long(clock, after_s, pause_s) -> None:
    paused = pauses.Pauses()
    paused.before_execution_starts(None)
    clock.now += after_s
    paused.on_execution_step(None)
    assert clock.slept == pytest.approx(pause_s)


def test_ray_data_pauses_where_the_engine_is_on_cpu(local_ray, context, monkeypatch) -> None:
    import ray

    steps = []
    monkeypatch.setattr(pauses.Pauses, "on_execution_step", lambda self, _: steps.append(self))
    for on_gpu, begins in ((False, True), (True, False), (False, True)):
        steps.clear()
        pipeline._set_up_ray_data(Job(), on_gpu=on_gpu)
        assert ray.data.range(4).map(lambda row: row).take_all() == [{"id": n} for n in range(4)]
        assert bool(steps) is begins
        assert len({id(each) for each in steps}) == begins, "as often as it was set up"


def test_the_users_own_callbacks_stay(context) -> None:
    class Theirs:
        pass

    context.custom_execution_callback_classes = [Theirs]
    for on_gpu in (False, False, True):
        pauses.set_up(context, on_gpu=on_gpu)
        assert Theirs in context.custom_execution_callback_classes
    assert context.custom_execution_callback_classes == [Theirs]
