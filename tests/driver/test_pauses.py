"""On CPU the driver looks at its tasks when one of them has news, and seldom else the longer it runs; beside a GPU as often
as Ray Data does."""

import time

import pytest
from ray.data import DataContext

from llava_batch import pipeline
from llava_batch.driver import pauses
from llava_batch.job import Job


class Task:
    def __init__(self, has_news: bool = False) -> None:
        self.has_news = has_news

    def get_waitable(self) -> "Task":
        return self


class Operator:
    def __init__(self, *tasks: Task) -> None:
        self.tasks = tasks

    def get_active_tasks(self) -> tuple[Task, ...]:
        return self.tasks


class Executor:
    def __init__(self, *operators: Operator) -> None:
        self._topology = dict.fromkeys(operators)


@pytest.fixture
def waits(monkeypatch) -> list[tuple[list[Task], float]]:
    """For whom it was waited, and how long at most; nothing else comes while it is waited."""
    found = []

    def wait(tasks, *, num_returns=1, timeout, fetch_local):
        ready = [task for task in tasks if task.has_news]
        assert num_returns in (1, len(tasks)) and not fetch_local
        if timeout == 0:
            return ready, [task for task in tasks if not task.has_news]
        assert not ready, "it is waited for what is there"
        found.append((list(tasks), timeout))
        return [], tasks

    monkeypatch.setattr("ray.wait", wait)
    return found


@pytest.fixture
def context():
    """A copy of Ray Data's settings, current within the test."""
    with DataContext.current(DataContext.get_current().copy()):
        yield DataContext.get_current()


@pytest.mark.parametrize(("after_s", "pause_s"), [(2, 0.02), (20, 0.2), (3600, 0.5)])
def test_a_pause_is_a_hundredth_of_the_time_gone_and_never_long(
    monkeypatch, waits, after_s, pause_s
) -> None:
    now = iter([1000.0, 1000.0 + after_s])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    paused, task = pauses.Pauses(), Task()
    paused.before_execution_starts(None)
    paused.on_execution_step(Executor(Operator(task)))
    assert waits == [([task], pytest.approx(pause_s))]


def test_what_an_earlier_stage_has_ready_is_no_news_and_ends_no_pause(waits) -> None:
    read, ready, answering = Task(), Task(has_news=True), Task()
    pauses.until_news(Executor(Operator(read), Operator(ready), Operator(answering)), 0.3)
    assert waits == [([answering, read], 0.3)]


def test_there_is_no_pause_before_answers_that_are_there_nor_where_nothing_is_at_work(
    waits,
) -> None:
    pauses.until_news(Executor(Operator(Task()), Operator(Task(), Task(has_news=True))), 0.3)
    pauses.until_news(Executor(Operator(), Operator()), 0.3)
    pauses.until_news(Executor(Operator(Task(has_news=True)), Operator()), 0.3)
    assert waits == []


def test_a_long_pause_ends_with_the_first_news(local_ray, context, monkeypatch) -> None:
    import ray

    monkeypatch.setattr(pauses, "SHARE", 1e6)
    monkeypatch.setattr(pauses, "LONGEST_S", 60.0)
    pipeline._set_up_ray_data(Job(), on_gpu=False)

    def slowly(row):
        time.sleep(0.3)
        return row

    begun = time.monotonic()
    rows = ray.data.range(4, override_num_blocks=4).map(lambda row: row).map(slowly, num_cpus=0.5)
    assert len(rows.take_all()) == 4
    assert time.monotonic() - begun < 60


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
