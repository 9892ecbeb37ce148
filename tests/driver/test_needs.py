"""What a row of a job takes in the engine, told from the job alone."""

from typing import Any

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.needs import ROUND, TEXT_TOKENS, slot_tokens
from llava_batch.driver.settle import settle
from llava_batch.job import Job

IMAGE = 64
"""Tokens of the demo model's image."""


def needed(**how: Any) -> int:
    settled = settle(Job(**how))
    found = slot_tokens(settled, Checkpoint.find(settled.job))
    assert found is not None
    return found


def test_a_slot_holds_an_image_its_prompt_and_its_answer() -> None:
    short, long = needed(prompt="Hi", max_new_tokens=32), needed(prompt="Hi", max_new_tokens=320)
    assert IMAGE + 32 < short < IMAGE + 32 + 64
    assert long - short == 288
    assert short % ROUND == 0


def test_the_turns_of_a_dialogue_are_counted_with_all_their_answers() -> None:
    asked = tuple(f"Question {n}?" for n in range(20))
    apart = needed(question=asked, max_new_tokens=64)
    together = needed(question=asked, max_new_tokens=64, dialogue=True)
    assert together > 20 * 64 + IMAGE > apart


def test_room_is_left_for_texts_that_come_with_the_rows() -> None:
    known = needed(prompt="Describe it.", max_new_tokens=32)
    assert needed(prompt="Describe it: {alt}", max_new_tokens=32) - known >= TEXT_TOKENS - ROUND
    assert needed(question_column="question", max_new_tokens=32) >= known - ROUND


def test_the_longest_choice_counts_in_place_of_the_limit() -> None:
    few = needed(question=("Yes or no?",), choices=("yes", "no"), max_new_tokens=500)
    assert few < 500


def test_a_recipe_is_counted_by_the_turns_that_it_draws() -> None:
    one = needed(recipe="detail", max_new_tokens=65)
    assert needed(recipe="conversation", max_new_tokens=65) > one + 65
