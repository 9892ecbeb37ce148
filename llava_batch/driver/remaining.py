"""Remaining: what is left of a job, in images and in seconds, by what was counted and how fast answers came.

Arithmetic alone: no clock, no file, no Ray. `estimate` asks it before a job, `progress` within one. An
interval holds its figure in about 19 of 20 cases, as far as what was seen tells; figures that are added
or multiplied are taken to err independently of each other.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, fmean, stdev

CONFIDENCE = 0.95

WINDOW_S = 60.0
"""Of answering, by which a pace is judged."""
LEAST_ARRIVALS = 8
"""After the first, that a pace is judged by, however long ago they were."""
_BINS = 8


@dataclass(frozen=True)
class Interval:
    """A figure that is not negative, and the bounds that it lies within."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Interval":
        return cls(value, value, value)

    @classmethod
    def around(cls, value: float, relative: float) -> "Interval":
        """`value`, give or take this share of it."""
        return cls(value, max(value * (1 - relative), 0.0), value * (1 + relative))

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def __add__(self, other: "Interval") -> "Interval":
        value = self.value + other.value
        below = math.hypot(self.value - self.low, other.value - other.low)
        above = math.hypot(self.high - self.value, other.high - other.value)
        return Interval(value, max(value - below, self.low + other.low, 0.0), value + above)

    def __mul__(self, other: "Interval") -> "Interval":
        value = self.value * other.value
        if not value:
            return Interval(value, self.low * other.low, self.high * other.high)
        pairs = ((self, other), (other, self))
        below = math.hypot(*((a.value - a.low) * b.value for a, b in pairs))
        above = math.hypot(*((a.high - a.value) * b.value for a, b in pairs))
        return Interval(value, max(value - below, self.low * other.low), value + above)

    def times(self, factor: float) -> "Interval":
        return Interval(self.value * factor, self.low * factor, self.high * factor)

    def less(self, number: float) -> "Interval":
        """So many fewer; not under none."""
        return Interval(*(max(bound - number, 0.0) for bound in (self.value, self.low, self.high)))

    def at_most(self, number: float) -> "Interval":
        return Interval(*(min(bound, number) for bound in (self.value, self.low, self.high)))

    def widened(self, relative: float) -> "Interval":
        """With a further error of this share."""
        return self * Interval.around(1.0, relative)

    def as_json(self) -> dict[str, float | None]:
        """Plain figures, whole ones as they are, others to six digits; a bound that is not there is null."""
        named = {"value": self.value, "low": self.low, "high": self.high}
        return {name: _plain(figure) for name, figure in named.items()}


def _plain(figure: float) -> float | None:
    if not math.isfinite(figure):
        return None
    return int(figure) if figure == int(figure) else float(f"{figure:.6g}")


def t_quantile(freedom: int) -> float:
    """Student's t, two-sided at CONFIDENCE, to a hundredth from two degrees of freedom on (the expansion
    in Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5; exact for one and two)."""
    p = (1 + CONFIDENCE) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z, n = NormalDist().inv_cdf(p), freedom
    terms = (
        z,
        (z**3 + z) / 4 / n,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96 / n**2,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / n**3,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160 / n**4,
    )
    return sum(terms)


def total(clusters: Sequence[tuple[float, float]], of_all: float) -> Interval:
    """The sum of a quantity over a whole that has `of_all` of some size, from clusters of it drawn at random,
    each its (size, quantity): by their ratio, and its variance between them (Cochran, Sampling
    Techniques, 6.3). Exact where they are the whole; without an upper bound where one was drawn of more.
    """
    drawn = sum(size for size, _ in clusters)
    held = sum(quantity for _, quantity in clusters)
    if drawn >= of_all or not drawn:
        return Interval.exactly(held) if drawn >= of_all else Interval(0.0, 0.0, math.inf)
    ratio, number = held / drawn, len(clusters)
    value = ratio * of_all
    if number < 2:
        return Interval(value, held, math.inf)
    spread = math.sqrt(sum((q - ratio * size) ** 2 for size, q in clusters) / (number - 1))
    all_clusters = of_all / drawn * number
    error = t_quantile(number - 1) * all_clusters * spread / math.sqrt(number)
    error *= math.sqrt(1 - drawn / of_all)
    return Interval(value, max(value - error, held), value + error)


class Pace:
    """How fast images come, by points in time at which so many had come; memory is bounded.

    The first arrival begins the count and is not in it: what came before was start-up, and a first burst.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._arrivals: deque[tuple[float, int]] = deque()
        self._now = 0.0

    def note(self, at_s: float, images: int) -> None:
        """By `at_s` so many images had come in all; times and images never fall."""
        self._now = at_s
        points = self._arrivals
        if images <= (points[-1][1] if points else 0):
            return
        if len(points) > 1000 and at_s - points[-1][0] < self._window_s / 1000:
            points[-1] = (at_s, images)
            return
        points.append((at_s, images))
        while len(points) > LEAST_ARRIVALS + 1 and at_s - points[1][0] >= self._window_s:
            points.popleft()

    @property
    def seconds(self) -> float:
        """Between the first arrival that counts and the last."""
        return self._arrivals[-1][0] - self._arrivals[0][0] if self._arrivals else 0.0

    @property
    def num_arrivals(self) -> int:
        """After the first."""
        return max(len(self._arrivals) - 1, 0)

    @property
    def first(self) -> tuple[float, int]:
        """The arrival that begins the count."""
        return self._arrivals[0] if self._arrivals else (0.0, 0)

    @property
    def last(self) -> tuple[float, int]:
        """The last arrival: when, and how many images had come."""
        return self._arrivals[-1] if self._arrivals else (0.0, 0)

    def seconds_per_image(self) -> Interval | None:
        """What an image takes, of all workers together; None until three arrivals tell. Where nothing
        has come for longer than it takes between two, that time counts too."""
        if self.num_arrivals < 2 or not self.seconds:
            return None
        (begun, first), (ended, last) = self._arrivals[0], self._arrivals[-1]
        gap = (ended - begun) / self.num_arrivals
        until = self._now if self._now - ended > 2 * gap else ended
        value = (until - begun) / (last - first)
        num_bins = min(_BINS, self.num_arrivals // 2)
        if num_bins < 2:
            return Interval(value, value / 2, value * 2)
        edges = [begun + i * (until - begun) / num_bins for i in range(num_bins + 1)]
        counts = [self._by(edge) for edge in edges]
        rates = [after - before for before, after in pairwise(counts)]
        error = t_quantile(num_bins - 1) * stdev(rates) / math.sqrt(num_bins) / fmean(rates)
        high = value / (1 - error) if error < 1 else math.inf
        return Interval(value, value / (1 + error), high)

    def _by(self, moment: float) -> float:
        """How many images had come by then, evenly between two arrivals."""
        points = [*self._arrivals, (max(self._now, self._arrivals[-1][0] + 1e-9), self.last[1])]
        for (t0, n0), (t1, n1) in pairwise(points):
            if moment <= t1:
                return n0 + (n1 - n0) * max(moment - t0, 0.0) / (t1 - t0) if t1 > t0 else n1
        return points[-1][1]


class Expected:
    """The images of a run: `known` ones, and those of shards of `num_bytes` in all that only reading counts,
    by the bytes of those that were looked into beforehand, or are whole by now."""

    def __init__(self, known: int, num_bytes: int) -> None:
        self._known, self._num_bytes = known, num_bytes
        self._looked: list[tuple[float, float]] = []

    def looked_into(self, shards: Sequence[tuple[int, int]]) -> None:
        """Shards' bytes, and their images as their headers say them."""
        self._looked = [(float(size), float(images)) for size, images in shards]

    def images(self, whole: tuple[int, int] = (0, 0)) -> Interval | None:
        """In all, where `whole` are the bytes and the images of shards that have been read to their ends;
        None where nothing tells yet."""
        known = Interval.exactly(self._known)
        if not self._num_bytes:
            return known
        if whole[0] >= self._num_bytes:
            return known + Interval.exactly(whole[1])
        looked = sum(size for size, _ in self._looked)
        if looked < self._num_bytes and whole[0] > looked:  # it says more than a first look
            return known + total([(float(whole[0]), float(whole[1]))], self._num_bytes)
        return known + total(self._looked, self._num_bytes) if self._looked else None


@dataclass(frozen=True)
class Left:
    """What is left: images, where their number is known or can be told, and seconds, once there is a pace."""

    images: Interval | None
    seconds: Interval | None

    def as_json(self) -> dict[str, dict[str, float | None] | None]:
        """Each with its bounds, null where nothing tells."""
        named = {"images": self.images, "seconds": self.seconds}
        return {name: figure.as_json() if figure else None for name, figure in named.items()}


def left(of_all: Interval | None, answered: int, pace: Pace) -> Left:
    """Of a run over `of_all` images, `answered` of which have come."""
    if of_all is None:
        return Left(None, None)
    images, each = of_all.less(answered), pace.seconds_per_image()
    return Left(images, None if each is None else images * each)
