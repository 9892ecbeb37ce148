"""Estimate: what is left of a job to do, before it is started: images, rows, tokens, hours, money.

The input is counted (`read.sample`), and a pilot of its rows is answered by the job's own stages on its
own machines; what is made of both stands here. A run takes, from the start of its process,

    start-up + images x seconds per image + the end

Start-up is the pilot's own: reading the input's names, Ray, the model, the way of the first rows through
the stages. The seconds per image are of all workers together, while all are at work. Nothing is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_batch.driver.remaining import CONFIDENCE, Interval, total
from llava_batch.read.reading import Look
from llava_batch.read.sample import RETRIED, by_kind
from llava_batch.unit import Unit

START_UP_DIFFERS = 0.2
PACE_DIFFERS = 0.1
"""By how much of itself the start-up, or the pace, of a job differs from that of another run of it on
the same machines (benchmarks/LOG.md): no pilot can tell that from within."""
END_S = 0.3
"""What a job does after a pilot's end: its report, its figures, the end of its process."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The open units of one kind, counted."""

    kind: str
    units: int
    images: Interval
    how: str

    @property
    def is_exact(self) -> bool:
        return self.images.is_exact


def count(units: Sequence[Unit], looks: Mapping[str, Look]) -> list[Counted]:
    """The images of each kind's units, by what looking at all or a few of them found."""
    return [_count(kind, several, looks) for kind, several in by_kind(units).items()]


def _count(kind: str, units: list[Unit], looks: Mapping[str, Look]) -> Counted:
    there = [(unit, looks[unit.name]) for unit in units if unit.name in looks]
    whole = all(look.is_whole for _, look in there)
    if whole and len(there) == len(units):
        images = Interval.exactly(sum(look.images for _, look in there))
        return Counted(
            kind=kind,
            units=len(units),
            images=images,
            how=_EXACTLY.get(kind.partition(",")[0], _ROWS),
        )
    clusters = [
        (float((unit.num_bytes if look.is_whole else look.num_bytes) or 1), float(look.images))
        for unit, look in there
    ]
    images = total(clusters, float(sum(unit.num_bytes or 1 for unit in units)))
    what = "" if whole else "the heads of "
    how = f"{what}{len(there):,} of {len(units):,}, the others by their sizes"
    return Counted(kind=kind, units=len(units), images=images, how=how)


_ROWS = "its tables' row counts"
_EXACTLY = {
    "tar": "their members' headers",
    "parquet": "their footers",
    "files": "the listing",
    "csv": "their records",
    "jsonl": "their lines",
    "arrow": "their batches",
    RETRIED: "the rows in error, or changed",
}


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A pilot's moments, in seconds of a clock that starts with the job's process and stands still while
    the input is counted, which a job does not do."""

    ready_s: float
    """The first worker had its model."""
    last_s: float
    """The last of the pilot's images were answered."""
    images: int
    """Those answered by then."""
    end_s: float
    """What ending took, from there on."""
    is_all: bool
    """Whether those were all that the job has to do."""
    slots_full: float | None
    """Share of the slots that decoded, step by step; None where nothing was."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """What a run takes, in seconds of the clock on the wall."""

    start_up: Interval
    per_image: Interval
    all: Interval
    notes: tuple[str, ...] = ()


def times(watched: Watched, pace: Interval | None, images: Interval) -> Times:
    """How long a job takes over `images`, by how the pilot went."""
    notes: tuple[str, ...] = ()
    answering_s = max(watched.last_s - watched.ready_s, 0.0)
    if pace is None:
        each, full = answering_s / max(watched.images, 1), watched.slots_full or 0.0
        pace = Interval(each * (1 + full) / 2, each * full, each)
        if not watched.is_all:
            notes = (f"the pilot was over before the pace was steady: its slots were {full:.0%} full, and "
                     "with more to do an image takes less; give a larger --pilot",)  # fmt: skip
    pace = pace.widened(PACE_DIFFERS)
    begun_s = max(watched.last_s - pace.value * watched.images, watched.ready_s)
    start_up = Interval.around(begun_s, START_UP_DIFFERS)
    end = Interval.around(watched.end_s + END_S, START_UP_DIFFERS)
    if watched.is_all:
        whole = Interval.around(watched.ready_s, START_UP_DIFFERS) + Interval.around(
            answering_s, PACE_DIFFERS
        )
        return Times(start_up=start_up, per_image=pace, all=whole + end)
    return Times(start_up=start_up, per_image=pace, all=start_up + pace * images + end, notes=notes)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job has to do still, and what that takes."""

    counted: list[Counted]
    """What is to be answered, by kind of input, images that open units were answered of among it."""
    images_answered: int
    """Images that the output folder has answers of: they are not in any figure."""
    images: Interval
    rows: Interval
    errors: Interval
    """Rows of them in error."""
    prompt_tokens: Interval
    answer_tokens: Interval
    times: Times
    workers: int
    machine: Mapping[str, Any]
    pilot: Mapping[str, Any]
    price_per_hour: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def worker_hours(self) -> Interval:
        """Workers by the hours that the job holds them, start-up and end among them."""
        return self.times.all.times(self.workers / 3600)

    @property
    def money(self) -> Interval | None:
        price = self.price_per_hour
        return None if price is None else self.worker_hours.times(price)

    def as_json(self) -> dict[str, Any]:
        """Plain figures, each with its bounds; a bound that is not there is null."""
        kinds = [
            {"kind": c.kind, "units": c.units, "images": c.images.as_json(), "exact": c.is_exact,
             "how": c.how}
            for c in self.counted
        ]  # fmt: skip
        return {
            "confidence": CONFIDENCE,
            "images": self.images.as_json(),
            "images_exact": self.images.is_exact,
            "images_answered": self.images_answered,
            "kinds": kinds,
            "rows": self.rows.as_json(),
            "rows_in_error": self.errors.as_json(),
            "prompt_tokens": self.prompt_tokens.as_json(),
            "answer_tokens": self.answer_tokens.as_json(),
            "start_up_s": self.times.start_up.as_json(),
            "seconds_per_image": self.times.per_image.as_json(),
            "seconds": self.times.all.as_json(),
            "hours": self.times.all.times(1 / 3600).as_json(),
            "workers": self.workers,
            "worker_hours": self.worker_hours.as_json(),
            "price_per_hour": self.price_per_hour,
            "money": None if self.money is None else self.money.as_json(),
            "machine": dict(self.machine),
            "pilot": dict(self.pilot),
            "notes": list(self.notes),
        }


def nothing_left(images_answered: int, price_per_hour: float | None = None) -> Estimate:
    """All is answered already."""
    none = Interval.exactly(0)
    return Estimate(
        counted=[], images_answered=images_answered, images=none, rows=none, errors=none,
        prompt_tokens=none, answer_tokens=none, workers=0, machine={}, pilot={},
        times=Times(start_up=none, per_image=none, all=none), price_per_hour=price_per_hour,
        notes=("all that the input holds is answered",),
    )  # fmt: skip


def images_in_all(counted: Iterable[Counted], taken_up: int, limit: int | None) -> Interval:
    """What is to be answered: of `counted` without those taken up from open units, at most `limit`."""
    images = sum((c.images for c in counted), Interval.exactly(0)).less(taken_up)
    return images if limit is None else images.at_most(limit)
