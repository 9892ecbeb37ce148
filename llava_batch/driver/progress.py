"""What a person sees while a run goes: a live line on a terminal, a line now and then in a log."""

import sys
import threading
import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llava_batch.driver.plan import Plan
from llava_batch.write.committer import Committer

_LIVE_EVERY_S = 0.5
_LOG_EVERY_S = 30.0
_RECENT_S = 30.0
_MAX_POINTS = 1000
_MOST_KINDS = 8


class Progress:
    """Draws the run's progress from a thread until the block ends; silent with `--quiet`.

    `history` is [(seconds since the start, images done)], thinned out to a bounded length.
    """

    def __init__(self, plan: Plan, committer: Committer, shared: Any) -> None:
        self._plan, self._committer, self._shared = plan, committer, shared
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._stages: dict[str, dict[str, float]] = {}
        self.history: list[tuple[float, int]] = [(0.0, 0)]

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        live = self._console.is_terminal and not self._plan.job.quiet
        if live:
            with Live(console=self._console, refresh_per_second=4, transient=True) as display:
                while not self._stop.wait(_LIVE_EVERY_S):
                    self._note()
                    display.update(self.drawn())
            return
        last = 0.0
        while not self._stop.wait(_LIVE_EVERY_S):
            self._note()
            if not self._plan.job.quiet and time.monotonic() - last >= _LOG_EVERY_S:
                last = time.monotonic()
                print(self.line().plain, file=sys.stderr, flush=True)

    def _note(self) -> None:
        import ray
        from ray.exceptions import RayError

        elapsed = time.monotonic() - self._started
        self.history.append((round(elapsed, 1), self._committer.tally.images))
        if len(self.history) > _MAX_POINTS:
            self.history = self.history[::2]
        ready, _ = ray.wait([reference := self._shared.stages.remote()], timeout=_LIVE_EVERY_S)
        if ready:
            with suppress(RayError):  # lost for now: it begins anew, and the last word stands
                self._stages = ray.get(reference)

    def drawn(self) -> Table:
        """The bar above the line."""
        done, total = self._done()
        grid = Table.grid(expand=True)
        grid.add_row(ProgressBar(total=total, completed=done, pulse=not done))
        grid.add_row(self.line())
        return grid

    def line(self) -> Text:
        """The state of the run in a line."""
        tally, plan = self._committer.tally, self._plan
        elapsed = time.monotonic() - self._started
        if not tally.images:
            return Text(f"{_clock(elapsed)}  starting {self._starting()}")
        noun = "unit" if plan.num_units == 1 else "units"
        units = f"{plan.work.num_done + tally.units} of {plan.num_units} {noun}"
        parts = [f"{tally.images}{self._of_how_many()} images", units]
        if tally.num_errors:
            parts.append(f"{tally.num_errors} rows in error")
        parts.append(
            f"{self._recent():.1f} images/s now, {tally.images / max(elapsed, 1e-9):.1f} over all"
        )
        left = self._left_s(elapsed)
        if left is not None:
            parts.append(f"{_clock(left)} left")
        parts += self._busy(elapsed)
        return Text(f"{_clock(elapsed)}  " + ", ".join(parts))

    def _starting(self) -> str:
        if not self._stages:
            return "actors, loading the model"
        return f"up: {self._stages.get('prepare', {}).get('rows', 0):g} images prepared, none answered yet"

    def _of_how_many(self) -> str:
        """The number of images in this run where it is known before reading: loose files, a limit."""
        todo, limit = self._plan.todo, self._plan.job.limit
        if all(unit.members and unit.retry is None for unit in todo):
            count = sum(len(unit.members) for unit in todo)
            return f" of {count if limit is None else min(count, limit)}"
        return "" if limit is None else f" of at most {limit}"

    def _done(self) -> tuple[int, int]:
        """How far it is, of how much: by units, since only their number is known beforehand."""
        tally, limit = self._committer.tally, self._plan.job.limit
        return (tally.units, len(self._plan.todo)) if limit is None else (tally.images, limit)

    def _recent(self) -> float:
        """Images a second over the last half minute."""
        now = self.history[-1]
        then = next(p for p in self.history if p[0] >= now[0] - _RECENT_S)
        return (now[1] - then[1]) / (now[0] - then[0]) if now[0] > then[0] else 0.0

    def _left_s(self, elapsed: float) -> float | None:
        done, total = self._done()
        return elapsed / done * (total - done) if done else None

    def _busy(self, elapsed: float) -> list[str]:
        said = []
        shares = {
            stage: c["busy_s"] / elapsed / max(c["workers"], 1) for stage, c in self._stages.items()
        }
        for stage, share in shares.items():
            mark = " (bottleneck)" if len(shares) > 1 and share == max(shares.values()) else ""
            said.append(f"{stage} {min(share, 1):.0%} busy{mark}")
        generate = self._stages.get("generate", {})
        if generate.get("slot_steps"):
            said.append(
                f"slots {generate['occupied_slot_steps'] / generate['slot_steps']:.0%} full"
            )
        return said


def tell_left_out(plan: Plan) -> None:
    """Say once how many files under the input are not read, by kind."""
    kinds = plan.inputs.left_out
    if not kinds or plan.job.quiet:
        return
    shown = [f"{count} {kind}" for kind, count in list(kinds.items())[:_MOST_KINDS]]
    rest = len(kinds) - len(shown)
    more = [f"{rest} more kind{'s' if rest > 1 else ''}"] if rest else []
    print(f"Left out, since they are not read: {', '.join(shown + more)}.", file=sys.stderr)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
