"""Each metric on cases made for its quirks, and over the official vectors where they are at hand.

The vectors stand in a folder named by LLAVA_BATCH_SHARED_DATA, or in ../shared/data beside the
project; without them that test is skipped.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.score.rules import (
    gqa_correct,
    gqa_normalize,
    m4c_accuracy,
    m4c_normalize,
    pope_summary,
    pope_verdict,
    scienceqa_option,
    vizwiz_accuracy,
    vqa_accuracy,
)

VECTORS = (
    Path(
        os.environ.get("LLAVA_BATCH_SHARED_DATA")
        or Path(__file__).resolve().parents[3] / "shared" / "data"
    )
    / "vectors"
)


def refs(*counted: tuple[str, int]) -> list[str]:
    """References with their counts, such as `("red", 9), ("rose", 1)`."""
    return [text for text, count in counted for _ in range(count)]


# Ten references that do not all agree, so that the official evaluator normalises.
def mixed(text: str) -> list[str]:
    return refs((text, 9), ("something else", 1))


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]
)
def test_accuracy_is_averaged_over_nine_of_ten_references(matches: int, expected: float) -> None:
    references = refs(("net", matches), ("goal", 10 - matches))
    assert vqa_accuracy("net", references) == pytest.approx(expected)
    assert m4c_accuracy("net", references) == pytest.approx(expected)


@pytest.mark.parametrize("answer", ["Yes", "yes.", "YES", "yes!"])
def test_nothing_is_normalised_when_all_references_agree(answer: str) -> None:
    assert vqa_accuracy(answer, ["yes"] * 10) == 0.0
    assert vqa_accuracy(answer, mixed("yes")) == 1.0
    assert m4c_accuracy(answer, ["yes"] * 10) == 1.0


def test_trimming_comes_before_the_question_whether_all_agree() -> None:
    references = refs(("yes", 5), (" yes\n", 5))
    assert vqa_accuracy("\tyes ", references) == 1.0
    assert vqa_accuracy("Yes", references) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("the dog", "dog"),
        ("a dog", "an dog"),
        ("two", "2"),
        ("none", "0"),
        ("zero", "none"),
        ("ten", "10"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("st. john", "st john"),
    ],
)
def test_articles_digits_apostrophes_and_periods_are_levelled(answer: str, reference: str) -> None:
    assert vqa_accuracy(answer, mixed(reference)) == 1.0
    assert m4c_accuracy(answer, mixed(reference)) == 1.0


def test_a_period_before_a_digit_stays() -> None:
    assert vqa_accuracy("3.5", mixed("35")) == 0.0
    assert vqa_accuracy("3.5.", mixed("3.5")) == 1.0


def test_only_the_first_32_periods_go() -> None:
    assert m4c_normalize("x" + "." * 32) == "x"
    assert m4c_normalize("x" + "." * 33) == "x."


def test_inner_punctuation_becomes_a_space_and_vanishes_beside_one() -> None:
    assert m4c_normalize("black-white") == "black white"
    assert m4c_normalize("black- white") == "black white"
    assert m4c_normalize("x-y z- w") == "xy z w"  # one hyphen by a space: all hyphens vanish


def test_digits_grouped_by_a_comma_make_all_punctuation_vanish_but_never_in_m4c() -> None:
    assert vqa_accuracy("1,000-5", mixed("10005")) == 1.0
    assert m4c_normalize("1,000-5") == "1000 5"


def test_m4c_splits_off_possessives_and_the_official_metric_does_not() -> None:
    assert m4c_normalize("Macy's") == "macy 's"
    assert vqa_accuracy("macy's", refs(("macy 's", 9), ("shop", 1))) == 0.0


def test_a_contraction_that_the_official_table_lacks_is_left_alone() -> None:
    assert vqa_accuracy("shes", mixed("she's")) == 0.0
    assert vqa_accuracy("im", mixed("i'm")) == 0.0  # the table has `Im`, looked up in lower case


def test_vizwiz_takes_unanswerable_as_any_answer() -> None:
    references = refs(("unanswerable", 4), ("label", 6))
    assert vizwiz_accuracy("Unanswerable", references) == 1.0


@pytest.mark.parametrize("metric", [vqa_accuracy, m4c_accuracy])
def test_no_references_is_an_error(metric) -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        metric("dog", [])


@settings(deadline=None)
@given(st.text(), st.lists(st.text(), min_size=1, max_size=12))
def test_accuracies_lie_between_0_and_1(answer: str, references: list[str]) -> None:
    assert 0 <= vqa_accuracy(answer, references) <= 1
    assert 0 <= m4c_accuracy(answer, references) <= 1


def test_gqa_drops_final_periods_and_case_of_the_answer_only() -> None:
    assert gqa_normalize("Dog..") == "dog"
    assert gqa_correct("Dog.", "dog")
    assert not gqa_correct("a dog", "dog")
    assert not gqa_correct("dog ", "dog")
    assert not gqa_correct("dog", "Dog")


@pytest.mark.parametrize(
    "text",
    ["No", "no", "No.", "No, there is none", "there is no dog", "It is not there. Yes.", ",no"],
)
def test_pope_reads_no(text: str) -> None:
    assert pope_verdict(text) == "no"


@pytest.mark.parametrize(
    "text",
    ["NO", "Nope", "none", "No\n", "There isn't any", "Yes. No.", "", "nothing", "Not", "no!"],
)
def test_pope_takes_everything_else_for_yes(text: str) -> None:
    assert pope_verdict(text) == "yes"


def test_pope_summary_counts_yes_as_positive() -> None:
    summary = pope_summary(["yes", "yes", "no", "no", "yes"], ["yes", "no", "no", "yes", "yes"])
    assert summary.accuracy == pytest.approx(3 / 5)
    assert summary.precision == pytest.approx(2 / 3)
    assert summary.recall == pytest.approx(2 / 3)
    assert summary.f1 == pytest.approx(2 / 3)
    assert summary.yes_ratio == pytest.approx(3 / 5)


def test_pope_summary_of_nothing_said_yes_is_zero_not_a_crash() -> None:
    summary = pope_summary(["no", "no"], ["no", "yes"])
    assert (summary.precision, summary.recall, summary.f1) == (0.0, 0.0, 0.0)


def test_pope_summary_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError):
        pope_summary(["no"], ["no", "yes"])


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("A", 0),
        ("D", 3),
        ("B. because", 1),
        ("The answer is C.", 2),
        ("LECTURE: much.\nThe answer is B.\nBECAUSE: of that", 1),
        ("The answer is B, surely", 1),
        ("C. The answer is A.", 2),
    ],
)
def test_scienceqa_reads_a_letter(text: str, index: int) -> None:
    assert scienceqa_option(text, 4) == index


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "A.",
        "(A)",
        "A: yes",
        "AB",
        " A",
        "The answer is B",
        "The answer is B\n",
        "The answer is b.",
        "the answer is B.",
        "The answer is A. The answer is A.",
        "F",
        "The answer is Z.",
    ],
)
def test_scienceqa_fails_on_anything_else(text: str) -> None:
    assert scienceqa_option(text, 4) is None


def test_scienceqa_fails_on_a_letter_beyond_the_options() -> None:
    assert scienceqa_option("C", 2) is None
    assert scienceqa_option("E", 5) == 4
    assert scienceqa_option("F", 6) is None


def vectors(name: str) -> Iterator[dict]:
    with open(VECTORS / name, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the official vectors are not at hand")
def test_every_official_vector_agrees() -> None:
    for row in vectors("vqa_accuracy.jsonl"):
        official = round(100 * vqa_accuracy(row["pred"], row["answers"]), 2)
        assert official == row["official_vqa_acc"], row
        assert m4c_normalize(row["pred"]) == row["m4c_norm_pred"], row
        assert round(100 * m4c_accuracy(row["pred"], row["answers"]), 2) == row["m4c_acc"], row
    for row in vectors("scienceqa_parse.jsonl"):
        assert scienceqa_option(row["output"], 5) == row["official_pred_idx"], row
    for split in ("popular", "random"):
        for row in vectors(f"coco_pope_{split}_answers.jsonl"):
            assert pope_verdict(row["text"]) == row["official_parse"], row
