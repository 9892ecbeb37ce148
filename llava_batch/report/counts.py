"""What is counted of every answer row, batch by batch, and the histograms made of it.

Memory does not grow with the rows: lengths are counted by value, log-probabilities in fine bins.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa

_FINE = 0.01
"""Width of the bins in which log-probabilities are counted."""
_LOWEST = -20.0
"""Log-probabilities under this are counted in the lowest bin."""
_MOST_BARS = 40


class Counts:
    """Rows, errors, lengths and log-probabilities of one folder."""

    def __init__(self) -> None:
        self.rows = 0
        self.images = 0
        self.errors: Counter[str] = Counter()
        self.finish: Counter[str] = Counter()
        self.answers = 0
        """Of all turns: a dialogue has several."""
        self.answer_tokens = 0
        self._lengths: Counter[int] = Counter()
        self._logprobs = np.zeros(round(-_LOWEST / _FINE) + 1, np.int64)
        self._last_image: str | None = None

    @property
    def num_errors(self) -> int:
        return self.errors.total()

    @property
    def num_ok(self) -> int:
        return self.rows - self.num_errors

    @property
    def cut_share(self) -> float | None:
        """The share of answers that ended at the token limit; None where there is no answer."""
        total = self.finish.total()
        return self.finish["length"] / total if total else None

    def add(self, batch: pa.RecordBatch, images: list[str]) -> None:
        """Count a batch of answer rows; `images` names each row's image."""
        self.rows += batch.num_rows
        for image in images:  # the rows of one image stand together
            self.images += image != self._last_image
            self._last_image = image
        statuses = _column(batch, "status")
        codes = zip(statuses, _column(batch, "error_code"), strict=True)
        self.errors.update(code or "unknown" for status, code in codes if status == "error")
        finish, lengths, logprobs = _turns_of_good_rows(batch["turns"], statuses)
        self.answers += len(finish)
        self.finish.update(f for f in finish if f)
        self._lengths.update(n for n in lengths if n is not None)
        self.answer_tokens += sum(n or 0 for n in lengths)
        self._add_logprobs(logprobs)

    def lengths(self) -> list[tuple[float, int]]:
        """(tokens, answers of that length), sorted."""
        return sorted(self._lengths.items())

    def logprobs(self) -> list[tuple[float, int]]:
        """(mean log-probability, answers there), sorted, in steps of 0.01."""
        counted = enumerate(self._logprobs.tolist())
        return [(round(_LOWEST + i * _FINE, 2), n) for i, n in counted if n]

    def _add_logprobs(self, values: list[float | None]) -> None:
        known = np.array([v for v in values if v is not None and not math.isnan(v)], np.float64)
        known = np.clip(known, _LOWEST, 0.0)  # a choice's log-probability may be minus infinity
        bins = np.round((known - _LOWEST) / _FINE).astype(np.int64)
        self._logprobs += np.bincount(bins, minlength=len(self._logprobs))


def length_bars(sides: Sequence[Counts]) -> dict[str, Any] | None:
    """One histogram of answer lengths with a series for each side; None where none is known."""
    values = [counts.lengths() for counts in sides]
    if not any(values):
        return None
    longest = max(int(side[-1][0]) for side in values if side)
    width = max(1, math.ceil((longest + 1) / _MOST_BARS))
    return {
        "start": 0,
        "width": width,
        "whole": True,
        "open_below": False,
        "series": [_series(side, 0, width, longest // width + 1) for side in values],
    }


def logprob_bars(sides: Sequence[Counts]) -> dict[str, Any] | None:
    """The same of mean log-probabilities, up to 0; the lowest bar holds all that are lower still."""
    values = [counts.logprobs() for counts in sides]
    if not any(values):
        return None
    low = min(_quantile(side, 0.01) for side in values if side)
    width = next(w for w in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if -low <= w * _MOST_BARS)
    num_bars = max(1, math.ceil(-low / width - 1e-9))
    start = round(-num_bars * width, 2)
    return {
        "start": start,
        "width": width,
        "whole": False,
        "open_below": any(side[0][0] < start for side in values if side),
        "series": [_series(side, start, width, num_bars) for side in values],
    }


def _series(
    values: list[tuple[float, int]], start: float, width: float, num_bars: int
) -> dict[str, Any] | None:
    if not values:
        return None
    bars = [0] * num_bars
    for value, count in values:
        place = math.floor((value - start) / width + 1e-9)
        bars[min(max(place, 0), num_bars - 1)] += count
    return {"bars": bars, "median": _quantile(values, 0.5)}


def _turns_of_good_rows(turns: pa.ListArray, statuses: list[str]) -> tuple[list[Any], ...]:
    """Finish reason, tokens and log-probability of every turn of the rows that are `ok`."""
    num_turns = turns.value_lengths().to_pylist()
    good = [s == "ok" for s, n in zip(statuses, num_turns, strict=True) for _ in range(n or 0)]
    flat = turns.flatten()
    names = ("finish_reason", "answer_tokens", "mean_logprob")
    return tuple(list(compress(flat.field(name).to_pylist(), good)) for name in names)


def _column(batch: pa.RecordBatch, name: str) -> list[Any]:
    values: list[Any] = batch[name].to_pylist()
    return values


def _quantile(values: list[tuple[float, int]], share: float) -> float:
    """The value under which `share` of the counted values lie; `values` are sorted (value, count)."""
    wanted, seen = share * sum(n for _, n in values), 0
    for value, count in values:
        seen += count
        if seen >= wanted:
            return value
    return values[-1][0]
