"""What a person sees while a run goes: a live line on a terminal, a line now and then in a log."""

import random
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llava_batch.driver.plan import Plan
from llava_batch.driver.remaining import Expected, Interval, Left, Pace, left
from llava_batch.read.kinds import KINDS
from llava_batch.unit import Unit
from llava_batch.write.committer import Committer

_MOST_LOOKED_INTO = 4
"""Shards of the local disk whose headers are read at the start, to know how many images there are."""
_LIVE_EVERY_S = 0.5
_LOG_EVERY_S = 30.0
_LOG_FIRST_S = 5.0
_JUDGED_S = 5.0
"""Of answering, before which no time left is said: the first answers come in a burst."""
_MAX_POINTS = 1000
_MOST_KINDS = 8


class Progress:
    """Draws the run's progress from a thread until the block ends; silent with `--quiet`.

    `history` is [(seconds since the start, images answered by this run)], thinned out to a bounded length.
    """

    def __init__(self, plan: Plan, committer: Committer, shared: Any) -> None:
        self._plan, self._committer, self._shared = plan, committer, shared
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._stages: dict[str, dict[str, float]] = {}
        self._ready_s: float | None = None
        """Seconds after the start at which the first worker had its model."""
        self._expected = expected(plan.todo)
        self._pace = Pace()
        self.history: list[tuple[float, int]] = [(0.0, 0)]

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        self._expected.looked_into(_looked_into(self._plan))
        live = self._console.is_terminal and not self._plan.job.quiet
        if live:
            with Live(console=self._console, refresh_per_second=4, transient=True) as display:
                while not self._stop.wait(_LIVE_EVERY_S):
                    self._note()
                    display.update(self.drawn())
            return
        due_s = 0.0
        while not self._stop.wait(_LIVE_EVERY_S):
            self._note()
            elapsed = time.monotonic() - self._started
            if not self._plan.job.quiet and elapsed >= due_s:
                due_s = next_line_s(elapsed)
                print(self.line().plain, file=sys.stderr, flush=True)

    def _note(self) -> None:
        import ray
        from ray.exceptions import RayError

        elapsed = time.monotonic() - self._started
        tally, before = self._committer.tally, self._committer.taken_up
        num_answered = 0 if before is None else tally.images - before.images
        self.history.append((round(elapsed, 1), num_answered))
        self._pace.note(elapsed, num_answered)
        if len(self.history) > _MAX_POINTS:
            self.history = self.history[::2]
        ready, _ = ray.wait([reference := self._shared.stages.remote()], timeout=_LIVE_EVERY_S)
        if ready:
            with suppress(RayError):  # lost for now: it begins anew, and the last word stands
                self._stages = ray.get(reference)
        if self._ready_s is None and "generate" in self._stages:
            self._ready_s = elapsed

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
        num_answered = self.history[-1][1]
        if not num_answered:
            return Text(f"{_clock(elapsed)}  starting {self._starting()}")
        noun = "unit" if plan.num_units == 1 else "units"
        units = f"{plan.work.num_done + tally.units} of {plan.num_units} {noun}"
        parts = [f"{tally.images}{self._of_how_many()} images", units]
        if tally.num_errors:
            parts.append(f"{tally.num_errors} rows in error")
        working = max(elapsed - (self._ready_s or 0.0), 1e-9)
        parts.append(
            f"{self._recent():.1f} images/s now, {num_answered / working:.1f} since start-up"
        )
        seconds = self.left().seconds
        if seconds is not None and self._pace.seconds >= _JUDGED_S:
            parts.append(f"{_clock(seconds.value)} left")
        parts += self._busy(working)
        return Text(f"{_clock(elapsed)}  " + ", ".join(parts))

    def _starting(self) -> str:
        loading = "" if "generate" in self._stages else ", loading the model"
        if not self._stages:
            return f"actors{loading}"
        prepared = self._stages.get("prepare", {}).get("rows", 0)
        return f"up: {prepared:g} images prepared{loading}, none answered yet"

    def _of_how_many(self) -> str:
        limit, images = self._plan.job.limit, self._images()
        if images is None or images.value < self._committer.tally.images:
            return "" if limit is None else f" of at most {limit}"
        return f" of {'' if images.is_exact else 'about '}{images.value:.0f}"

    def _done(self) -> tuple[int, int]:
        """How far it is, of how much: by units where only their number is known."""
        tally = self._committer.tally
        images = self._images()
        if images is None or images.value < tally.images:
            return tally.units, len(self._plan.todo)
        return tally.images, round(images.value)

    def _recent(self) -> float:
        """Images a second of late, start-up left out."""
        each = self._pace.seconds_per_image()
        return 1 / each.value if each is not None else 0.0

    def left(self) -> Left:
        """What is left of the run; no time where more images came than were expected."""
        images, answered = self._images(), self._committer.tally.images
        if self._committer.tally.units == len(self._plan.todo):
            return Left(Interval.exactly(0), Interval.exactly(0))
        if images is not None and not images.is_exact and images.value < answered:
            return Left(None, None)
        return left(images, answered, self._pace)

    def _images(self) -> Interval | None:
        """Of the whole run, those taken up among them."""
        tally, limit = self._committer.tally, self._plan.job.limit
        images = self._expected.images((tally.bytes_of_shards, tally.images_of_shards))
        if images is None:
            return None
        return images if limit is None else images.at_most(limit)

    def _busy(self, working_s: float) -> list[str]:
        said = []
        shares = {
            stage: c["busy_s"] / working_s / max(c["workers"], 1)
            for stage, c in self._stages.items()
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


def tell_start(plan: Plan) -> None:
    """Say what is to be done, before what takes seconds: Ray, its actors, the model."""
    count = len(plan.todo)
    ahead = " to look at the machine" if plan.job.dry_run else ", then the model"
    if not plan.job.quiet:
        print(f"{count:,} {'unit' if count == 1 else 'units'} to answer; starting Ray{ahead}",
              file=sys.stderr, flush=True)  # fmt: skip


def next_line_s(said_s: float) -> float:
    """When a log gets its next line after one at `said_s` seconds: soon at first, then now and then."""
    return said_s + min(max(said_s, _LOG_FIRST_S), _LOG_EVERY_S)


def expected(units: Sequence[Unit]) -> Expected:
    """The images of these units, as far as they are known before reading."""
    counts = [(unit.num_rows, unit.num_bytes or 0) for unit in units]
    known = sum(rows for rows, _ in counts if rows is not None)
    return Expected(known, sum(size for rows, size in counts if rows is None))


def _looked_into(plan: Plan) -> list[tuple[int, int]]:
    """Bytes and images of a few local shards, by their headers; a storage that fails is told by others."""
    unknown = [u for u in plan.todo if u.num_rows is None and u.num_bytes]
    local = [unit for unit in unknown if unit.fs.type_name == "local"]
    chosen = random.Random(0).sample(local, min(len(local), _MOST_LOOKED_INTO))
    found = []
    for unit in chosen:
        with suppress(OSError, MemoryError):
            look = KINDS[unit.kind].look(unit, plan.reading)
            size = unit.num_bytes if look.is_whole else look.num_bytes
            found.append((size or 0, look.images))
    return found


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
