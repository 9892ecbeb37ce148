"""When a run has failed: by a rate that was given, else only one of many rows without a good one."""

from dataclasses import replace
from typing import Any

import pytest

from llava_batch.driver.summary import Summary


def ended(rows: int, errors: int) -> Summary:
    run = {
        "units_failed": {},
        "rows": rows,
        "ok": rows - errors,
        "errors": {"image_missing": errors},
    }
    return Summary(
        status="complete", output="out", started_at="", finished_at="", wall_s=1.0, model="demo",
        fingerprint="", settings={}, run=run, totals={},
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "errors"), [(0, 0), (1, 1), (99, 99), (100, 99), (1000, 999)])
def test_a_few_bad_images_or_one_good_one_are_no_failure_by_default(rows, errors):
    # One bad image of one ended a night with exit status 3.
    assert ended(rows, errors).problem(None) is None


def test_many_rows_without_a_good_one_are():
    said = ended(100, 100).problem(None)
    assert said is not None and said.startswith("all 100 rows are in error (100 image_missing)")


@pytest.mark.parametrize(
    ("rows", "errors", "rate", "fails"),
    [(1, 1, 0.5, True), (2, 1, 0.5, False), (3, 2, 0.5, True), (9, 9, 1.0, False), (9, 1, 0.0, True),
     (0, 0, 0.0, False), (500, 500, 1.0, False)],
)  # fmt: skip
def test_a_rate_that_is_given_is_always_judged_by(rows, errors, rate, fails):
    said = ended(rows, errors).problem(rate)
    assert bool(said) == fails
    if said:
        assert (
            f"{errors} of {rows} rows are in error" in said and f"--max-error-rate {rate:g}" in said
        )


def of_no_question(images: int, **how: Any) -> Summary:
    given: dict[str, Any] = {"totals": {"rows": 0}, "settings": {"limit": None}} | how
    return replace(
        ended(0, 0), run=ended(0, 0).run | {"images": images, "images_without_question": 4}, **given
    )


def test_questions_that_joined_no_image_of_the_folder_are_a_failure():
    # Exit status 0 stood behind `104 images had no question in the file`.
    said = of_no_question(4).problem(None)
    assert said is not None and "none of the file's questions joins any of 4 images" in said
    assert of_no_question(5).problem(None) is None
    assert of_no_question(4, totals={"rows": 9}).problem(None) is None, "a night of new images"
    assert of_no_question(4, settings={"limit": 4}).problem(None) is None, "the first ones alone"
