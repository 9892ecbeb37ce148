"""Stop: SIGTERM and Ctrl-C end a run between two commits, never within one.

`ray job stop` sends SIGTERM and kills three seconds later; a scheduler gives more. What is being
written is finished, units that are open are left open, and a second signal changes nothing.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Turns the first signal into a KeyboardInterrupt for the length of the block.

    Outside the main thread it does nothing: its caller owns the signals.
    """

    def __init__(self) -> None:
        self._whole = False
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        try:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        except ValueError:  # not in the main thread
            self._before = {}
        return self

    def take_back(self) -> None:
        """Heed signals again: starting Ray puts a handler of its own in the place of this one."""
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What is done in the block is not interrupted; a signal is heeded at its end."""
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
        if self._asked:
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Wait between two tries of one write: here a signal is heeded within `whole` too.

        Raises:
            KeyboardInterrupt: a signal has come, now or before.
        """
        held, self._whole = self._whole, False
        try:
            if self._asked:
                raise KeyboardInterrupt
            time.sleep(seconds)
        finally:
            self._whole = held

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self._asked = self._asked, True
        if not self._whole and not again:
            raise KeyboardInterrupt
