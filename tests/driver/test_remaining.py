"""What is left: bounds that hold their figure as often as they say, and a pace by a clock that is simulated."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_batch.driver.remaining import CONFIDENCE, Interval, Pace, left, t_quantile, total

figures = st.floats(0.01, 1e6)
intervals = st.tuples(figures, st.floats(0, 0.9), st.floats(0, 3)).map(
    lambda t: Interval(t[0], t[0] * (1 - t[1]), t[0] * (1 + t[2]))
)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)],
)
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=0.015)


@given(intervals, intervals)
def test_sums_and_products_hold_their_figure_and_are_wider_than_either(a: Interval, b: Interval):
    for made in (a + b, a * b):
        assert made.low <= made.value * (1 + 1e-9) and made.value <= made.high * (1 + 1e-9)
    tightest = Interval(a.value + b.value, a.low + b.low, a.high + b.high)
    assert (a + b).low >= tightest.low * (1 - 1e-9) and (a + b).high <= tightest.high * (1 + 1e-9)
    assert (a * b).low >= a.low * b.low * (1 - 1e-9)
    assert (a + b).high - (a + b).value >= (a.high - a.value) * (1 - 1e-6) - 1e-6


@given(intervals)
def test_what_is_exact_adds_no_width(a: Interval) -> None:
    assert a + Interval.exactly(0) == pytest.approx(a) or (a + Interval.exactly(0)).value == a.value
    doubled = a * Interval.exactly(2)
    assert (doubled.low, doubled.high) == pytest.approx((a.low * 2, a.high * 2), rel=1e-6)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 500)), min_size=1, max_size=30))
def test_the_whole_is_its_sum_and_a_part_of_it_never_less_than_what_was_seen(clusters) -> None:
    size, held = sum(s for s, _ in clusters), sum(q for _, q in clusters)
    assert total(clusters, size) == Interval.exactly(held)
    more = total(clusters, size * 3)
    assert held <= more.low <= more.value <= more.high
    assert more.value == pytest.approx(held * 3)
    assert math.isinf(more.high) == (len(clusters) == 1)


def test_bounds_hold_the_truth_in_as_many_cases_as_they_say() -> None:
    chance = random.Random(1)
    hits = 0
    for _ in range(400):
        shards = []
        for _ in range(200):
            size = chance.uniform(50, 400)
            shards.append((size, size * chance.uniform(0.5, 2.0)))
        truth = sum(q for _, q in shards)
        told = total(chance.sample(shards, 16), sum(s for s, _ in shards))
        hits += told.low <= truth <= told.high
    assert hits / 400 >= CONFIDENCE - 0.04


def paced(rate: float, *, batch: int, until_s: float, start_s: float = 0.0) -> Pace:
    """Batches of images at an even rate, looked at twice a second, after a start-up."""
    pace = Pace()
    for half in range(int(2 * until_s) + 1):
        pace.note(half / 2, batch * int(max(half / 2 - start_s, 0) * rate / batch))
    return pace


@given(
    rate=st.floats(1, 2000), batch=st.integers(1, 64), start_s=st.sampled_from([0.0, 10.0, 600.0])
)
def test_an_even_pace_is_told_whatever_the_batches_and_the_start_up(rate, batch, start_s) -> None:
    least_s = max(20 * batch / rate, 20.0)
    pace = paced(rate, batch=batch, until_s=start_s + least_s, start_s=start_s)
    each = pace.seconds_per_image()
    assert each is not None
    assert each.value == pytest.approx(1 / rate, rel=0.2)
    assert each.low * 0.99 <= 1 / rate <= each.high * 1.01


def test_no_pace_is_told_by_a_first_burst() -> None:
    pace = Pace()
    assert pace.seconds_per_image() is None
    for at in (0.0, 1.0, 2.0):
        pace.note(at, 32)
    assert pace.seconds_per_image() is None, "one batch says nothing of the next"


def test_six_seconds_were_told_as_five_minutes() -> None:
    # The first answers came 12 s after the model was there, the rest within 6 s: 0:05:43 left was said.
    pace = Pace()
    for tenth in range(180):
        images = 0 if tenth < 120 else 32 + (tenth - 120) // 2 * 16
        pace.note(tenth / 10, images)
    told = left(Interval.exactly(32 + 480 + 480), 32 + 472, pace)
    assert told.images == Interval.exactly(488)
    assert told.seconds is not None and told.seconds.value == pytest.approx(6, rel=0.1)


def test_a_slow_hour_is_forgotten_once_it_goes_fast() -> None:
    pace = Pace()
    for second in range(3600):
        pace.note(second, second)
    for second in range(3600, 3700):
        pace.note(second, 3600 + (second - 3600) * 100)
    each = pace.seconds_per_image()
    assert each is not None and each.value == pytest.approx(0.01, rel=0.05)


def test_a_pace_that_falls_to_nothing_is_no_pace_that_goes_on() -> None:
    pace = paced(100, batch=10, until_s=30)
    before = pace.seconds_per_image()
    for second in range(31, 331):
        pace.note(second, pace.last[1])
    after = pace.seconds_per_image()
    assert before is not None and after is not None
    assert after.value > 5 * before.value


def test_one_batch_in_ten_minutes_is_a_pace_too() -> None:
    pace = Pace()
    for batch in range(12):
        pace.note(batch * 600, batch * 32)
    each = pace.seconds_per_image()
    assert each is not None and each.value == pytest.approx(600 / 32, rel=0.01)


def test_memory_is_bounded_however_long_it_runs() -> None:
    pace = Pace(window_s=1e9)
    for number in range(100_000):
        pace.note(number / 1000, number + 1)
    assert len(pace._arrivals) < 3000
    each = pace.seconds_per_image()
    assert each is not None and each.value == pytest.approx(0.001, rel=0.01)


def test_nothing_is_left_of_a_run_whose_images_have_come() -> None:
    pace = paced(10, batch=5, until_s=30)
    assert left(Interval.exactly(100), 100, pace) == (left(Interval.exactly(90), 100, pace)), (
        "an estimate that was too low is no negative number"
    )
    assert left(Interval.exactly(100), 100, pace).seconds == Interval.exactly(0)
    assert left(None, 100, pace).seconds is None
