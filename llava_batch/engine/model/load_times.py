"""Seconds of an engine's start, by phase."""

import time


class Startup:
    """A clock that is read at the end of each phase; what lies between two readings is that phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        """`phase` has lasted since the phase before it, or since the clock was made."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


def told(seconds: dict[str, float]) -> str:
    """`12.3 s: find_files 0.1, read_weights 10.2, ...`"""
    phases = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
    return f"{sum(seconds.values()):.1f} s: {phases}"
