"""float32 answers are those of transformers' `generate` for one request alone, whatever the batch."""

import random

import pytest
from tiny_llava import SHAPES, by_key, engine, image, prompt, reference, requests

from llava_batch.engine import Request

pytestmark = pytest.mark.usefixtures("path")


def expect_reference(shape, given, **options):
    made = engine(shape, **options)
    found = by_key(list(made.generate(given)))
    expected = {
        (request.id, turn, sample): answer
        for request in given
        for sample in range(request.num_samples)
        for turn, answer in enumerate(reference(shape, request))
    }
    assert {key: c.token_ids for key, c in found.items()} == expected
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_five_lengths_in_one_batch_answer_as_alone(shape):
    expect_reference(shape, requests(5), slots=5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slots", [1, 2, 3, 8, 16])
def test_answers_do_not_depend_on_slots_or_order(shape, slots):
    given = requests(11)
    random.Random(slots).shuffle(given)
    made = expect_reference(shape, given, slots=slots)
    made._scheduler.check()


@pytest.mark.parametrize("shape", SHAPES)
def test_questions_of_one_image_fork_and_answer_as_alone(shape):
    pixels, base = image(7), prompt(7, 24)
    given = [
        Request(id=f"q{n}", pixels=pixels, prompt_ids=[*base, *range(5, 6 + n)], max_new_tokens=9)
        for n in range(6)
    ]
    made = expect_reference(shape, given, slots=4)
    assert made.stats.images_encoded == 1
    assert made.stats.tokens_reused > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dialogue_in_its_slot_answers_as_the_whole_conversation(shape):
    turns = ((2, 9, 8), (2, 17, 30, 31, 32), (2, 5))
    given = requests(5, turns=turns, max_new_tokens=7)
    made = expect_reference(shape, given, slots=3)
    assert made.stats.images_encoded == 5
