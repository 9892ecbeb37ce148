"""What is made of a pilot: figures with bounds, whichever rows it had, and times by a clock that is simulated."""

import json
import math
import random
from typing import Any

import pyarrow as pa
import pytest

from llava_batch.driver import pilot as pilots
from llava_batch.driver.estimate import (
    END_S,
    Counted,
    Estimate,
    Watched,
    count,
    images_in_all,
    nothing_left,
    times,
)
from llava_batch.driver.pilot import Pilot
from llava_batch.driver.remaining import Interval
from llava_batch.read.reading import Look
from llava_batch.read.sample import RUN_ROWS
from llava_batch.tables import BOOKKEEPING, load_schema
from tests.outputs import unit

SCHEMA = pa.schema([*load_schema("answers"), *BOOKKEEPING])


def row(ordinal: int, tokens: int = 5, *, error: str | None = None, **more: Any) -> dict[str, Any]:
    turns = None if error else [{"answer_tokens": tokens}]
    said = {"unit": "u", "ordinal": ordinal, "siblings": 1, "position": 0, "end": False,
            "error_code": error, "prompt_tokens": None if error else 70, "turns": turns}  # fmt: skip
    return said | more


def end(run: int, images: int, problem: str | None = None) -> dict[str, Any]:
    return {
        "unit": str(run),
        "ordinal": images,
        "end": True,
        "siblings": 0,
        "error_message": problem,
    }


def batch(*rows: dict[str, Any]) -> pa.Table:
    schema = pa.schema([f.with_nullable(True) for f in SCHEMA])
    return pa.Table.from_pylist([*rows], schema=schema)


def piloted(lengths: list[list[int]], images: int = 1) -> Pilot:
    """A pilot whose runs had answers of these lengths."""
    pilot = Pilot(len(lengths), images)
    for number, tokens in enumerate(lengths):
        rows = [row(number * RUN_ROWS + i, n) for i, n in enumerate(tokens)]
        pilot.add(batch(*rows, end(number, len(tokens))), at=100.0 + number)
    return pilot


def test_a_pilot_that_is_the_whole_input_tells_it_exactly() -> None:
    pilot = piloted([[3] * 8, [5] * 8, [7] * 4])
    images = Interval.exactly(20)
    assert pilot.is_all and pilot.images == 20
    assert pilot.of("rows", images) == Interval.exactly(20)
    assert pilot.of("answer_tokens", images) == Interval.exactly(24 + 40 + 28)
    assert pilot.of("prompt_tokens", images) == Interval.exactly(20 * 70)


def test_tokens_of_all_lie_within_the_bounds_as_often_as_is_said() -> None:
    chance = random.Random(4)
    hits = 0
    for _ in range(100):
        units = [chance.uniform(5, 60) for _ in range(200)]
        lengths = [[round(chance.gauss(mean, 4)) for _ in range(8)] for mean in units]
        truth = sum(map(sum, lengths))
        told = piloted(chance.sample(lengths, 12)).of("answer_tokens", Interval.exactly(1600))
        hits += told.low <= truth <= told.high
    assert hits >= 90


def test_an_image_with_several_rows_is_one_and_one_without_any_is_one_too() -> None:
    pilot = Pilot(1, 3)
    pilot.add(batch(row(0, siblings=2), row(1, siblings=0, turns=None)), at=1.0)
    assert pilot.pace.last == (1.0, 1), "the first image lacks a row"
    pilot.add(batch(row(0, siblings=2), row(2, error="image_truncated"), end(0, 3)), at=2.0)
    assert pilot.pace.last == (2.0, 3)
    assert pilot.of("rows", Interval.exactly(3)) == Interval.exactly(3)
    assert pilot.of("errors", Interval.exactly(3)) == Interval.exactly(1)


def test_runs_after_one_that_is_not_whole_are_not_counted() -> None:
    # Those that came early have the short answers.
    pilot = Pilot(3, 1)
    pilot.add(batch(row(0, 2), end(0, 1), row(2 * RUN_ROWS, 2), end(2, 1), end(1, 1)), at=1.0)
    assert pilot.images == 1 and not pilot.is_all
    pilot.add(batch(row(RUN_ROWS, 100)), at=9.0)
    assert pilot.images == 3 and pilot.is_all


def test_it_is_over_once_its_images_are_in_and_the_pace_was_watched() -> None:
    pilot = Pilot(1000, 64)
    over = []
    for number in range(60):
        run = [row(number * RUN_ROWS + i) for i in range(8)]
        pilot.add(batch(*run, end(number, 8)), at=100 + number * 0.5)
        if pilot.is_enough(100 + number * 0.5):
            over.append(number)
    assert over[0] == 2 * (pilots.SETTLED_S + pilots.STEADY_S)
    slow = Pilot(1000, 64)
    for number in range(8):
        run = [row(number * RUN_ROWS + i) for i in range(8)]
        slow.add(batch(*run, end(number, 8)), at=100 + number * 40)
        assert slow.is_enough(100 + number * 40) == (number == 7), "no more than were asked for"


def test_the_first_seconds_are_start_up_and_no_pace() -> None:
    pilot = Pilot(1000, 64)
    at = 100.0
    for number in range(40):
        run = [row(number * RUN_ROWS + i) for i in range(8)]
        pilot.add(batch(*run, end(number, 8)), at=at)
        at += 0.4 if at < 100.0 + pilots.SETTLED_S else 0.2
    each = pilot.pace.seconds_per_image()
    assert each is not None and each.value == pytest.approx(0.2 / 8)
    ended, images = pilot.pace.last
    assert images == 320 and abs(ended - at + 0.2) < 1e-6


def test_a_pilot_that_is_soon_over_tells_the_pace_that_it_had() -> None:
    pilot = Pilot(3, 24)
    for number in range(3):
        run = [row(number * RUN_ROWS + i) for i in range(8)]
        pilot.add(batch(*run, end(number, 8)), at=100 + 0.5 * number)
    each = pilot.pace.seconds_per_image()
    assert pilot.is_all and each is not None and each.value == pytest.approx(0.5 / 8)


def test_a_burst_at_the_end_is_no_pace() -> None:
    pilot = Pilot(8, 64)
    times = [100 + 0.5 * n for n in range(6)] + [103.0, 103.001]
    for number, at in enumerate(times):
        run = [row(number * RUN_ROWS + i) for i in range(8)]
        pilot.add(batch(*run, end(number, 8)), at=at)
    each = pilot.pace.seconds_per_image()
    assert each is not None and each.value == pytest.approx(3.001 / 56)


def test_it_goes_on_while_its_pace_is_uneven_but_not_for_ever() -> None:
    pilot = Pilot(1000, 8)
    at, over = 100.0, []
    for number in range(200):
        run = [row(number * RUN_ROWS + i) for i in range(8)]
        at += 0.05 if number % 20 else 4.0
        pilot.add(batch(*run, end(number, 8)), at=at)
        if pilot.is_enough(at):
            over.append(at - 100.0)
    assert over[0] > 4 * pilots.STEADY_S
    assert pilot.is_enough(100.0 + 4.0 + pilots.MOST_S)


def test_a_storage_that_fails_for_a_run_is_told_and_the_others_count() -> None:
    pilot = Pilot(2, 1)
    pilot.add(batch(end(0, 0, "OSError: away"), row(RUN_ROWS), end(1, 1)), at=1.0)
    assert (pilot.images, pilot.problem) == (1, "OSError: away")


@pytest.mark.parametrize("rate", [0.5, 20.0, 400.0])
def test_times_are_those_of_a_line_through_the_pilot(rate: float) -> None:
    # A job whose model is there after 30 s, whose first images take 2 s, the others 1/rate each.
    watched = Watched(
        ready_s=30, last_s=32 + 500 / rate, images=500, end_s=3, is_all=False, slots_full=1
    )
    each = Interval.around(1 / rate, 0.03)
    told = times(watched, each, Interval.exactly(100_000))
    truth = 32 + 100_000 / rate + 3 + END_S
    assert told.all.value == pytest.approx(truth)
    assert told.all.low < truth < told.all.high <= 1.4 * told.all.low
    assert told.start_up.value == pytest.approx(32)
    assert told.notes == ()


def test_a_job_that_the_pilot_was_all_of_takes_what_it_took() -> None:
    watched = Watched(ready_s=10, last_s=12, images=48, end_s=1, is_all=True, slots_full=0.3)
    told = times(watched, None, Interval.exactly(48))
    assert told.all.value == pytest.approx(13 + END_S)
    assert told.all.low < 13 < told.all.high < 1.5 * told.all.low
    assert told.notes == ()


def test_slots_that_stayed_empty_widen_the_bounds_and_say_so() -> None:
    watched = Watched(ready_s=10, last_s=74, images=64, end_s=0, is_all=False, slots_full=0.25)
    told = times(watched, None, Interval.exactly(100_000))
    assert told.per_image.low < 0.26 and told.per_image.high > 1.0
    (note,) = told.notes
    assert "25% full" in note and "--pilot" in note


def test_units_are_counted_exactly_where_all_were_looked_at() -> None:
    units = [unit("a", source="1000-1"), unit("b", source="3000-1")]
    looks = {"a": Look(images=10, num_bytes=900), "b": Look(images=30, num_bytes=2900)}
    (counted,) = count(units, looks)
    assert counted.is_exact and counted.images == Interval.exactly(40)
    looks.pop("b")
    (counted,) = count(units, looks)
    assert not counted.is_exact and counted.images.value == 40 and math.isinf(counted.images.high)
    looks["b"] = Look(images=5, is_whole=False, num_bytes=500)
    (counted,) = count(units, looks)
    assert counted.images.value == pytest.approx(15 / 1500 * 4000)
    assert "heads" in counted.how


def test_what_open_units_have_answered_and_what_a_limit_leaves_out_is_not_to_do() -> None:
    counted = [Counted(kind="tar", units=1, images=Interval(100, 90, 120), how="")]
    assert images_in_all(counted, 30, None) == Interval(70, 60, 90)
    assert images_in_all(counted, 0, 95) == Interval(95, 90, 95)
    assert images_in_all([], 0, None) == Interval.exactly(0)


def test_its_json_has_no_number_that_json_has_not() -> None:
    made = Estimate(
        counted=[Counted(kind="tar", units=2, images=Interval(4, 2, math.inf), how="by size")],
        images_answered=0, images=Interval(4, 2, math.inf), rows=Interval.exactly(4),
        errors=Interval.exactly(0), prompt_tokens=Interval.exactly(1), answer_tokens=Interval.exactly(1),
        times=times(
            Watched(ready_s=1, last_s=2, images=1, end_s=0, is_all=False, slots_full=None),
            None, Interval(4, 2, math.inf),
        ),
        workers=2, machine={}, pilot={}, price_per_hour=3.0,
    )  # fmt: skip
    told = json.loads(json.dumps(made.as_json(), allow_nan=False))
    assert told["images"] == {"value": 4, "low": 2, "high": None}
    assert told["money"]["value"] == pytest.approx(told["worker_hours"]["value"] * 3, rel=1e-4)
    assert told["worker_hours"]["value"] == pytest.approx(told["hours"]["value"] * 2, rel=1e-4)


def test_nothing_left_costs_nothing() -> None:
    made = nothing_left(48, 2.0)
    assert made.as_json()["money"] == {"value": 0, "low": 0, "high": 0}
    assert made.as_json()["images_answered"] == 48
