"""Requests longer than a slot: they take several adjacent ones, and answer as alone."""

import random
from typing import Any

import numpy as np
import pytest
import stand_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_llava import (
    IMAGE,
    SHAPES,
    TOKENS,
    by_key,
    engine,
    image,
    prompt,
    reference,
    requests,
)

from llava_batch.engine import Request

pytestmark = pytest.mark.usefixtures("path")


def expect_reference(shape: str, given: list[Request], **options: Any):
    made = engine(shape, **{"slots": 6, "slot_tokens": 40, "max_tokens": 240, **options})
    found = by_key(list(made.generate(given)))
    expected = {
        (request.id, turn, sample): answer
        for request in given
        for sample in range(request.num_samples)
        for turn, answer in enumerate(reference(shape, request))
    }
    assert {key: c.token_ids for key, c in found.items()} == expected
    made._scheduler.check()
    assert not made.num_active
    return made


MIXED = (3, 60, 5, 17, 120, 11, 90)
"""Of text behind the image: of one to five slots of 40 tokens."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slots", [1, 4, 12])
def test_short_and_long_requests_together_answer_as_alone(shape, slots):
    given = requests(14, lengths=MIXED)
    random.Random(slots).shuffle(given)
    made = expect_reference(shape, given, slots=slots)
    assert made.cache.num_slots == max(slots, 6), "the longest request finds place"


@pytest.mark.parametrize("shape", SHAPES)
def test_long_prompts_fork_into_as_many_slots(shape):
    pixels, base = image(7), prompt(7, 70)
    given = [
        Request(
            id=f"q{n}", pixels=pixels, prompt_ids=[*base, *range(5, 6 + 9 * n)], max_new_tokens=9
        )
        for n in range(6)
    ]
    made = expect_reference(shape, given, slots=9)
    assert made.stats.tokens_reused >= 4 * len(base)
    assert made.stats.images_encoded == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dialogue_of_twenty_turns_runs_with_the_default_slots(shape):
    turns = tuple((2, 9 + n, 8) for n in range(19))
    given = requests(3, turns=turns, max_new_tokens=7)
    made = engine(shape, max_tokens="auto")
    assert made.cache.slot_tokens < len(given[0].prompt_ids) + 20 * 7 + 19 * 3
    expect_reference(shape, given, slot_tokens="auto", max_tokens="auto")


def test_four_images_in_a_prompt_run_with_the_default_slots(monkeypatch):
    monkeypatch.setattr("llava_batch.engine.model.sizing.ROOM_TOKENS", 20)
    pixels = np.concatenate([image(n) for n in range(4)])
    one = Request(
        id="four",
        pixels=pixels,
        prompt_ids=[1, *[5, *[IMAGE] * TOKENS] * 4, 7, 9],
        max_new_tokens=9,
    )
    made = expect_reference("multi-head", [one, *requests(3)], slot_tokens="auto")
    assert made.cache.slot_tokens == TOKENS + 20


@pytest.mark.parametrize("shape", ["multi-head", "mistral"])
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_requests_need_they_answer_as_alone(shape, data):
    """Random needs, slots, lengths of a slot, forks, turns and samples."""
    given = []
    for n in range(data.draw(st.integers(1, 9))):
        seed = data.draw(st.integers(0, 2))
        given.append(
            Request(
                id=f"{n}",
                pixels=image(seed),
                prompt_ids=prompt(seed, data.draw(st.sampled_from([2, 40, 41, 80, 130]))),
                turns=((2, 9, 8),) * data.draw(st.integers(0, 2)),
                max_new_tokens=data.draw(st.integers(1, 9)),
                num_samples=data.draw(st.integers(1, 2)),
                ignore_eos=True,
            )
        )
    slot_tokens = data.draw(st.integers(24, 100))
    expect_reference(shape, given, slots=data.draw(st.integers(1, 9)), slot_tokens=slot_tokens)


def test_what_exceeds_the_limit_and_what_exceeds_memory_are_told_apart(monkeypatch):
    monkeypatch.setattr("llava_batch.engine.model.sizing.fitting_slots", lambda *_: 3)
    made = engine(slots=2, slot_tokens=50, max_tokens=400)
    assert made.cache.num_slots == 3
    given = [
        Request(id=str(n), prompt_ids=[1] * n, max_new_tokens=10) for n in (5, 140, 141, 390, 391)
    ]
    found = {key[0]: c.error_code for key, c in by_key(list(made.generate(given))).items()}
    assert found == {
        "5": None, "140": None, "141": "out_of_memory", "390": "out_of_memory",
        "391": "prompt_too_long",
    }  # fmt: skip


def test_a_row_that_is_not_finite_leaves_the_rows_beside_it_alone(path):
    made = engine("multi-head", slots=5, slot_tokens=40, max_tokens=200)
    with_nan = requests(5, lengths=(3, 60, 3, 70, 3), max_new_tokens=12, ignore_eos=True)
    for request in with_nan:
        made.submit(request)
    made.step()
    bad = next(s for s in made._scheduler.active.values() if s.width > 1)
    for layer in made.cache.slot_layers:
        layer.values[bad.slot : bad.slot + bad.width] = float("nan")
    found: dict[tuple[str, int, int], Any] = {}
    while made.has_work:
        found |= by_key(made.step())
    for request in with_nan:
        completion = found[(request.id, 0, 0)]
        if request.id == bad.request.id:
            assert completion.error_code == "non_finite"
        else:
            assert completion.token_ids == reference("multi-head", request)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["flash", "varlen"])
def test_each_kernel_of_a_card_reads_rows_of_several_slots(monkeypatch, path, name, shape):
    if path != "packed":
        pytest.skip("the kernel is the same")
    stand_in.install(monkeypatch, stand_in.varlen_attn)
    expect_reference(shape, requests(8, lengths=MIXED), attention=name, lag=True)
