"""A signal ends a run between two commits, and while one waits for its storage."""

import signal
import time

import pytest

from llava_batch.driver.signals import Stop


def test_a_signal_within_a_commit_is_heeded_at_its_end() -> None:
    done = []
    with Stop() as stop, pytest.raises(KeyboardInterrupt), stop.whole():
        signal.raise_signal(signal.SIGINT)
        done.append("whole")
    assert done == ["whole"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_storage_within_a_commit(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: signal.raise_signal(number))
    done = []
    with Stop() as stop, pytest.raises(KeyboardInterrupt), stop.whole():
        try:
            stop.sleep(30)
            done.append("slept")
        finally:
            signal.raise_signal(number)  # a second one changes nothing
    assert done == []


def test_nothing_is_waited_for_once_a_signal_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with Stop() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            stop.sleep(1)
    assert slept == []


def test_a_signal_is_heeded_after_another_library_took_its_handler_and_it_was_taken_back() -> None:
    # Ray's start put its own in place: a run that was stopped died by SIGABRT, with nothing said.
    with Stop() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.take_back()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
