"""What a request may ask for, and that none of it touches its neighbours."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llava import (
    BOS,
    EOS,
    IMAGE,
    TOKENS,
    VOCAB,
    by_key,
    engine,
    image,
    pixel_values,
    prompt,
    reference,
    reference_ids,
    requests,
    tiny,
    wrapped,
)

from llava_batch.engine import Engine, Request

pytestmark = pytest.mark.usefixtures("path")


def run(given, **options):
    return by_key(list(engine(**options).generate(given)))


def one(**options) -> Request:
    return Request(**{"id": "one", "pixels": image(0), "prompt_ids": prompt(0, 5), **options})


def test_min_new_tokens_and_repetition_penalty_answer_as_transformers():
    given = [
        one(id="min", min_new_tokens=12, max_new_tokens=20),
        one(id="penalty", repetition_penalty=1.4, max_new_tokens=20),
        one(id="both", min_new_tokens=9, repetition_penalty=1.2, max_new_tokens=20),
        one(id="plain", max_new_tokens=20),
    ]
    found = run(given, slots=4)
    for request in given:
        assert found[(request.id, 0, 0)].token_ids == reference("multi-head", request)[0]


def test_a_repetition_penalty_is_over_the_whole_dialogue():
    turns = (tuple(range(3, 30)), tuple(range(30, 58)))
    given = requests(4, turns=turns, repetition_penalty=1.6, max_new_tokens=12, ignore_eos=True)
    found = run(given, slots=2)
    for request in given:
        for turn, answer in enumerate(reference("multi-head", request)):
            assert found[(request.id, turn, 0)].token_ids == answer


def test_an_answer_ends_at_its_end_token_and_leaves_it_out():
    given = requests(12)
    found = run(given)
    assert {c.finish_reason for c in found.values()} == {"stop", "length"}
    for request in given:
        completion = found[(request.id, 0, 0)]
        assert EOS not in completion.token_ids
        at_limit = len(completion.token_ids) == request.max_new_tokens
        assert at_limit == (completion.finish_reason == "length")


def test_ignore_eos_goes_on_to_the_limit():
    found = run(requests(4, max_new_tokens=40, ignore_eos=True))
    assert {len(c.token_ids) for c in found.values()} == {40}


def test_a_stop_sequence_ends_the_answer_and_is_cut_off():
    free = run([one(max_new_tokens=20, ignore_eos=True)])[("one", 0, 0)].token_ids
    stop = free[6:8]
    place = next(n for n in range(19) if free[n : n + 2] == stop)
    found = run([one(max_new_tokens=20, ignore_eos=True, stop=(stop,))])[("one", 0, 0)]
    assert (found.token_ids, found.finish_reason) == (free[:place], "stop")


def letters(ids):
    return "".join(chr(97 + token % 26) * 2 for token in ids)


def test_a_stop_string_may_begin_within_a_token():
    free = run([one(max_new_tokens=20, ignore_eos=True)])[("one", 0, 0)].token_ids
    text = letters(free)
    stop = text[9:12]
    begin = text.find(stop)
    request = one(max_new_tokens=20, ignore_eos=True, stop=(stop,))
    found = run([request], decode=letters)[("one", 0, 0)]
    assert found.text == text[:begin]
    assert found.token_ids == free[: begin // 2]
    assert found.finish_reason == "stop"


def test_a_stop_string_without_a_decoder_is_an_error_of_that_request():
    assert run([one(stop=("x",))])[("one", 0, 0)].error_code == "bad_prompt"


def test_mean_logprob_is_that_of_the_model():
    found = run([one(max_new_tokens=9, ignore_eos=True)])[("one", 0, 0)]
    model = tiny("multi-head")
    ids = [*prompt(0, 5), *found.token_ids]
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([ids]), pixel_values=pixel_values(image(0), model)
        ).logits[0, -10:-1]
    scores = torch.log_softmax(logits, -1).gather(1, torch.tensor(found.token_ids)[:, None])
    assert found.mean_logprob == pytest.approx(float(scores.mean()), abs=1e-5)


def test_sampling_does_not_depend_on_neighbours():
    sampled = one(temperature=0.9, top_p=0.95, top_k=20, seed=3, max_new_tokens=15)
    alone = run([sampled], slots=1)[("one", 0, 0)].token_ids
    crowd = [*requests(5, temperature=0.7), sampled, *requests(3, lengths=(20,))]
    crowd[-3:] = [
        Request(id=f"x{n}", pixels=image(30 + n), prompt_ids=prompt(30 + n, 8)) for n in range(3)
    ]
    assert run(crowd, slots=4)[("one", 0, 0)].token_ids == alone


def test_another_seed_or_id_draws_another_answer():
    given = [
        one(id=name, seed=seed, temperature=1.5, max_new_tokens=15, ignore_eos=True)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert len({c.token_ids for c in run(given).values()}) == 3


def test_a_cold_or_narrow_sample_is_greedy():
    given = [
        one(id="cold", temperature=1e-4, max_new_tokens=10),
        one(id="top_k", temperature=1.0, top_k=1, max_new_tokens=10),
        one(id="top_p", temperature=1.0, top_p=1e-6, max_new_tokens=10),
    ]
    greedy = reference("multi-head", one(max_new_tokens=10))[0]
    assert {c.token_ids for c in run(given).values()} == {greedy}


def test_samples_share_one_prefill_and_differ():
    made = engine(slots=4)
    ids = prompt(0, 24)
    request = one(
        prompt_ids=ids, num_samples=6, temperature=1.5, max_new_tokens=12, ignore_eos=True
    )
    found = by_key(list(made.generate([request])))
    assert len({c.token_ids for c in found.values()}) == 6
    assert made.stats.tokens_prefilled == len(request.prompt_ids)
    assert made.stats.images_encoded == 1


def test_choices_are_scored_as_the_model_scores_them():
    choices = ((5, 9), (17,), (30, 31, 32))
    made = engine(slots=3)
    found = by_key(list(made.generate([one(choices=choices)])))[("one", 0, 0)]
    model = tiny("multi-head")
    scores = []
    for choice in choices:
        ids = torch.tensor([[*prompt(0, 5), *choice]])
        with torch.inference_mode():
            logits = model(input_ids=ids, pixel_values=pixel_values(image(0), model)).logits[0]
        part = torch.log_softmax(logits[-len(choice) - 1 : -1], -1)
        scores.append(float(part.gather(1, torch.tensor(choice)[:, None]).sum()))
    shares = torch.softmax(torch.tensor(scores), 0)
    assert found.choice == int(shares.argmax())
    assert found.probability == pytest.approx(float(shares.max()), abs=1e-4)
    assert found.token_ids == choices[found.choice]
    assert made.stats.images_encoded == 1


def test_a_logits_processor_constrains_its_own_request_only():
    def only_even(answer, logits):
        logits[1::2] = float("-inf")
        return logits

    given = [one(id="even", logits_processor=only_even, max_new_tokens=10), *requests(3)]
    found = run(given)
    assert all(token % 2 == 0 for token in found[("even", 0, 0)].token_ids)
    for request in given[1:]:
        assert found[(request.id, 0, 0)].token_ids == reference("multi-head", request)[0]


def ends_with_an_image(number: int, text: int) -> list[int]:
    """Text, and behind it nothing but the image."""
    rng = np.random.default_rng(2000 + number)
    return [BOS, *rng.integers(3, IMAGE, text).tolist(), *[IMAGE] * TOKENS]


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("text", [5, 40])
def test_equal_prompts_that_end_with_their_image_have_equal_answers(slots, text):
    asked = one(prompt_ids=ends_with_an_image(0, text), max_new_tokens=8, ignore_eos=True)
    found = run([replace(asked, id=name) for name in "abc"], slots=slots)
    (expected,) = reference("multi-head", asked)
    assert {key[0]: c.token_ids for key, c in found.items()} == dict.fromkeys("abc", expected)


def test_samples_choices_and_turns_behind_a_prompt_that_ends_with_its_image():
    ids = ends_with_an_image(1, 40)
    shared = {"prompt_ids": ids, "pixels": image(1), "ignore_eos": True}
    given = [
        one(id="first", **shared),
        one(id="samples", num_samples=3, temperature=1.0, max_new_tokens=6, **shared),
        one(id="choices", choices=((5,), (9,), (17, 3)), **shared),
        one(id="turns", turns=((2, 9),), max_new_tokens=6, **shared),
    ]
    found = run(given, slots=4)
    for request in given:
        alone = run([request], slots=1, reuse=False)
        for key, completion in alone.items():
            assert (found[key].token_ids, found[key].choice) == (
                completion.token_ids,
                completion.choice,
            )


BAD: dict[str, dict[str, Any]] = {
    "prompt_too_long": {"max_new_tokens": 500},
    "bad_prompt": {"prompt_ids": []},
    "bad_prompt ": {"prompt_ids": [1, VOCAB]},
    "bad_prompt  ": {"pixels": np.zeros((1, 3, 5, 5), np.uint8)},
    "bad_prompt   ": {"temperature": -1.0},
    "bad_prompt    ": {"choices": ((1,),), "num_samples": 2},
}


@pytest.mark.parametrize("code", BAD)
def test_a_bad_request_is_an_error_of_its_own(code):
    good = requests(3)
    found = run([good[0], one(**BAD[code]), *good[1:]])
    assert found[("one", 0, 0)].error_code == code.strip()
    assert found[("one", 0, 0)].error
    for request in good:
        assert found[(request.id, 0, 0)].token_ids == reference("multi-head", request)[0]


def test_a_dialogue_in_error_still_has_a_completion_for_each_turn():
    found = run([one(turns=((2, 5), (2, 6)), max_new_tokens=100)])
    assert {(c.turn, c.error_code) for c in found.values()} == {
        (turn, "prompt_too_long") for turn in range(3)
    }


def test_scores_that_are_not_finite_are_an_error_of_that_row():
    model = copy.deepcopy(tiny("multi-head"))
    poison = 50
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = float("nan")
    ids = [token if token != poison else 3 for token in prompt(0, 5)]
    good = Request(id="good", pixels=image(0), prompt_ids=ids, max_new_tokens=6)
    bad = Request(id="bad", pixels=image(1), prompt_ids=[*ids, poison], max_new_tokens=6)
    found = by_key(list(wrapped(model, slots=1, max_tokens=128).generate([bad, good])))
    assert found[("bad", 0, 0)].error_code == "non_finite"
    assert found[("good", 0, 0)].token_ids == tuple(reference_ids(tiny("multi-head"), good, ids))


def test_a_prefill_without_memory_is_halved_and_a_single_row_is_an_error(monkeypatch):
    made = engine(slots=4, prefill_tokens=10_000)
    whole = made._runner._prefill_group

    def tight(group):
        if len(group) > 2 or any(s.request.id == "r1" for s in group):
            raise torch.OutOfMemoryError("not enough memory")
        return whole(group)

    monkeypatch.setattr(made._runner, "_prefill_group", tight)
    given = requests(4)
    found = by_key(list(made.generate(given)))
    assert found[("r1", 0, 0)].error_code == "out_of_memory"
    for request in (given[0], given[2], given[3]):
        assert found[(request.id, 0, 0)].token_ids == reference("multi-head", request)[0]


def test_many_requests_leave_nothing_behind():
    made = engine(slots=4)
    pulled = 0

    def source():
        nonlocal pulled
        for number in range(300):
            pulled += 1
            yield Request(
                id=str(number),
                pixels=image(number),
                prompt_ids=prompt(number, number % 9),
                max_new_tokens=2,
            )

    done = 0
    for _ in made.generate(source()):
        done += 1
        assert pulled - done <= 3 * made.num_slots, "requests are pulled faster than answered"
    assert done == 300
    assert not made.has_work
    assert made._runner.encoder.num_features <= 16
    made._scheduler.check()


def test_the_engine_stays_full_over_many_small_batches(path):
    made = engine(slots=4)
    waiting = [requests(3, max_new_tokens=8, ignore_eos=True)[n % 3] for n in range(24)]
    waiting = [
        Request(
            id=str(n),
            pixels=image(n),
            prompt_ids=prompt(n, 6),
            max_new_tokens=4 + n % 5,
            ignore_eos=True,
        )
        for n in range(24)
    ]
    done = []
    while waiting or made.has_work:
        while waiting and made.num_waiting < made.num_slots:
            made.submit(waiting.pop(0))
        done += made.step()
    assert len(done) == 24
    # With lag a slot is given on one step after its row has ended.
    assert made.stats.occupancy > (0.75 if path == "lagging" else 0.85)


def test_a_model_that_is_another_engines_is_refused():
    made = engine(slots=1)
    with pytest.raises(ValueError, match="belongs to another engine"):
        Engine(made.llava.model, slots=1)
