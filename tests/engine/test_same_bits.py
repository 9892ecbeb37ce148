"""On CPU an answer has the same bits whatever shares its batch: tokens and log-probabilities, also in bfloat16."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llava import SHAPES, by_key, image, prompt, random_llava, text_config, vision_config
from transformers import SiglipVisionConfig

from llava_batch.engine import Engine, Request
from llava_batch.engine.kernels import choose, cpu_build, cpu_linear
from llava_batch.engine.kernels.contract import Place

CASES = [*((shape, torch.bfloat16) for shape in SHAPES), ("multi-head", torch.float32)]
SLOT_TOKENS = 256
TURNS = ((2, 9, 8), (2, 17, 30, 31, 32), (2,))


def native(dtype: torch.dtype) -> None:
    """Skip where the kernels that the promise is made for cannot be had."""
    missing = choose.why_not("native", Place(device="cpu", dtype=dtype))
    missing = missing or cpu_build.why_not_built(dtype)
    if missing:
        pytest.skip(missing)


@cache
def model(shape: str, dtype: torch.dtype):
    """Wide enough that a product of one row alone would take another way."""
    text = text_config(shape)
    text.intermediate_size = 4096
    vision = vision_config()
    if shape == "qwen2":
        vision = SiglipVisionConfig(
            **{**vision.to_dict(), "model_type": "siglip_vision_model", "hidden_act": "gelu"}
        )
        return random_llava(vision, text, vision_feature_select_strategy="full").to(dtype)
    return random_llava(vision, text).to(dtype)


def engine(shape: str, dtype: torch.dtype, slots: int, **options) -> Engine:
    return Engine(
        copy.deepcopy(model(shape, dtype)),
        slots=slots,
        max_tokens=SLOT_TOKENS,
        attention="native",
        **options,
    )


def pool() -> list[Request]:
    """Plain, forked, sampled, of one token, of several turns, with choices, without an image."""
    shared = prompt(7, 40)
    plain = [
        Request(id=f"plain {n}", pixels=image(n), prompt_ids=prompt(n, 3 + 5 * n), max_new_tokens=9)
        for n in range(4)
    ]
    forked = [
        Request(id=f"forked {n}", pixels=image(7), prompt_ids=[*shared, *range(5, 5 + n)])
        for n in range(4)
    ]
    sampled = [
        Request(
            id=f"sampled {n}",
            pixels=image(7),
            prompt_ids=shared,
            temperature=1.0,
            top_p=(1.0, 0.9)[n],
            num_samples=3,
            seed=n,
        )
        for n in range(2)
    ]
    dialogues = [
        Request(id=f"dialogue {n}", pixels=image(n), prompt_ids=prompt(n, 8), turns=TURNS)
        for n in range(2)
    ]
    given = [
        *(replace(request, max_new_tokens=12) for request in forked + sampled + dialogues),
        Request(
            id="choices",
            pixels=image(7),
            prompt_ids=shared,
            choices=((9,), (9, 2), (11, 12, 13)),
        ),
        Request(id="no image", prompt_ids=[1, 5, 6, 7], max_new_tokens=12),
        replace(plain[0], id="penalised", repetition_penalty=1.3, min_new_tokens=3),
    ]
    return plain + given


def bits(completions) -> dict:
    """What must be equal, floats as they are."""
    return {
        key: (c.token_ids, c.mean_logprob, c.probability, c.finish_reason)
        for key, c in by_key(completions).items()
    }


@cache
def alone(shape: str, dtype: torch.dtype) -> dict:
    """Every request of the pool by itself, nothing shared, one slot."""
    made = engine(shape, dtype, 1, reuse=False)
    return {
        key: answer
        for request in pool()
        for key, answer in bits(list(made.generate([request]))).items()
    }


def disturbed(made: Engine, requests: list[Request], back_off_at: int) -> list:
    """All answers, half of the rows sent back to wait once, with what they have answered so far."""
    for request in requests:
        made.submit(request)
    done, steps = [], 0
    while made.has_work:
        done += made.step()
        same_where_it_is_read(made)
        steps += 1
        if steps == back_off_at and made.num_active > 1:
            made._scheduler.back_off()
            made._picks.forget(range(made.num_slots))
    return done


def same_where_it_is_read(made: Engine) -> None:
    """What a row reads in another's slot is what it holds itself."""
    made._scheduler.check()
    for sequence in made._scheduler.active.values():
        for layer in made.cache.slot_layers if sequence.origin >= 0 else ():
            for slots in (layer.keys, layer.values):
                here, there = (
                    slots[n, :, : sequence.num_shared] for n in (sequence.slot, sequence.origin)
                )
                assert torch.equal(here, there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_and_questions_of_one_image_read_it_in_one_place(dtype):
    native(dtype)
    made = engine("multi-head", dtype, 12)
    for request in pool():
        made.submit(request)
    seen = set()
    while made.has_work:
        made.step()
        same_where_it_is_read(made)
        seen |= {s.request.id for s in made._scheduler.active.values() if s.origin >= 0}
    assert {"forked 2", "sampled 0"} <= seen


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_slots_neighbours_order_and_interruptions_change_no_bit(shape, dtype, data):
    native(dtype)
    known = alone(shape, dtype)
    requests = data.draw(st.permutations(pool()))[: data.draw(st.integers(1, len(pool())))]
    made = engine(
        shape,
        dtype,
        data.draw(st.integers(1, 32)),
        reuse=data.draw(st.booleans()),
        prefill_tokens=data.draw(st.sampled_from([16, 100, 1000])),
    )
    found = bits(disturbed(made, requests, data.draw(st.integers(1, 12))))
    wanted = {request.id for request in requests}
    assert found == {key: answer for key, answer in known.items() if key[0] in wanted}


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_where_onednn_multiplies_no_bit_depends_on_the_batch_either(monkeypatch, shape, dtype):
    native(dtype)
    by_panels = alone(shape, dtype)
    monkeypatch.setattr(cpu_linear, "panels_are_best", lambda weight: False)
    one = engine(shape, dtype, 1, reuse=False)
    known = {
        key: answer
        for request in pool()
        for key, answer in bits(list(one.generate([request]))).items()
    }
    assert bits(list(engine(shape, dtype, 5).generate(pool()))) == known
    if dtype == torch.float32:
        assert {key: a[0] for key, a in known.items()} == {
            key: a[0] for key, a in by_panels.items()
        }


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_a_dialogue_in_its_slot_has_the_bits_of_the_whole_conversation(shape, dtype):
    native(dtype)
    talk = Request(
        id="talk", pixels=image(3), prompt_ids=prompt(3, 8), turns=TURNS, max_new_tokens=12
    )
    answers = list(engine(shape, dtype, 1).generate([talk]))
    ids = list(talk.prompt_ids)
    for answer, turn in zip(answers, (*TURNS, ()), strict=True):
        whole = replace(talk, prompt_ids=ids, turns=())
        (again,) = engine(shape, dtype, 1).generate([whole])
        assert (again.token_ids, again.mean_logprob) == (answer.token_ids, answer.mean_logprob)
        ids = [*ids, *answer.token_ids, *turn]
