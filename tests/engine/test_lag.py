"""Reading tokens one step late changes no answer, only what is computed in vain."""

import random

import pytest
import torch
from tiny_llava import EOS, PATHS, SHAPES, TOKENS, engine, image, prompt, requests

from llava_batch.engine import Request, scheduler
from llava_batch.engine.readback import Flight


def letters(ids):
    return "".join(chr(97 + token % 26) * 2 for token in ids)


def even_only(answer, logits):
    logits[1::2] = float("-inf")
    return logits


def not_the_last(answer, logits):
    """Depends on the whole answer so far."""
    if answer:
        logits[answer[-1]] = float("-inf")
    return logits


def mixture() -> list[Request]:
    """Every kind of request, of several turns too, beginning alike and not."""
    pixels, base = image(7), prompt(7, 24)
    turns = ((2, 9, 8), (2, 17, 30, 31, 32), (2, 5))
    drawn = {"temperature": 1.1, "top_p": 0.9}

    def ask(name: str, **options) -> Request:
        number = sum(map(ord, name)) % 50
        given = {"pixels": image(number), "prompt_ids": prompt(number, number % 7), **options}
        return Request(**{"id": name, "max_new_tokens": 9, **given})

    return [
        *requests(5),
        *(ask(f"fork{n}", pixels=pixels, prompt_ids=[*base, *range(5, 6 + n)]) for n in range(4)),
        ask("one", max_new_tokens=1),
        ask("samples", pixels=pixels, prompt_ids=base, num_samples=5, **drawn),
        ask("dialogue", turns=turns),
        ask("drawn", turns=turns, num_samples=2, top_k=20, **drawn),
        ask("penalty", turns=turns, repetition_penalty=1.3),
        ask("penalty drawn", turns=turns, repetition_penalty=1.3, temperature=0.8),
        ask("least", turns=turns, min_new_tokens=5),
        ask("all", min_new_tokens=4, repetition_penalty=1.2, top_k=9, **drawn),
        ask("text", stop=("cc", "mm", "xx"), turns=turns, max_new_tokens=20),
        ask("tokens", stop=((5,), (7, 9), (40,)), turns=turns, max_new_tokens=20),
        ask("choices", pixels=pixels, prompt_ids=base, choices=((5, 9), (17,), (30, 31, 32))),
        ask("single", choices=((5,), (EOS,))),
        ask("even", logits_processor=even_only, turns=turns),
        ask("changing", logits_processor=not_the_last, max_new_tokens=15, **drawn),
        ask("too long", max_new_tokens=900),
        ask("no image", pixels=None, prompt_ids=[1, 5, 6, 7], repetition_penalty=1.5),
    ]


def answers(given, shape="multi-head", **options):
    made = engine(shape, decode=letters, max_tokens=200, **options)
    found = {}
    for completion in made.generate(given):
        key = (completion.id, completion.turn, completion.sample)
        assert key not in found
        found[key] = (
            *(completion.token_ids, completion.finish_reason, completion.text, completion.choice),
            completion.error_code,
        )
    made._scheduler.check()
    assert not made.has_work
    assert not made._picks.num_up, "nothing is left in flight"
    return found


_alone: dict = {}


def alone(shape):
    """The mixture one by one along the plain path, whose answers the other tests hold to be right."""
    if shape not in _alone:
        _alone[shape] = answers(mixture(), shape, slots=1, reuse=False, attention="torch")
    return _alone[shape]


@pytest.mark.parametrize("path", ["packed", "lagging"])
@pytest.mark.parametrize("slots", [1, 2, 3, 8, 16])
def test_every_kind_of_request_answers_as_alone_on_the_plain_path(path, slots):
    given = mixture()
    random.Random(slots).shuffle(given)
    assert answers(given, slots=slots, **PATHS[path]) == alone("multi-head")


def test_admitted_several_at_a_time_the_answers_are_the_same(monkeypatch):
    monkeypatch.setattr(scheduler, "TOGETHER", 2)
    assert answers(mixture(), slots=8, **PATHS["lagging"]) == alone("multi-head")


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_every_kind_of_request_answers_as_alone_for_other_shapes(shape):
    assert answers(mixture(), shape, slots=5, **PATHS["lagging"]) == alone(shape)


def test_a_limit_that_is_known_wastes_no_step_and_an_end_wastes_one():
    made = engine(slots=2, **PATHS["lagging"])
    list(made.generate(requests(4, max_new_tokens=6, ignore_eos=True)))
    assert made.stats.tokens_wasted == 0
    assert made.stats.tokens_decoded == 4 * 5, "the first token is the prefill's"
    found = list(made.generate(requests(12, max_new_tokens=40)))
    stopped = sum(completion.finish_reason == "stop" for completion in found)
    assert stopped > 0
    assert made.stats.tokens_wasted == stopped


def test_a_step_is_launched_before_the_one_before_it_is_read(monkeypatch):
    made = engine(slots=2, **PATHS["lagging"])
    events = []

    def noted(event, call):
        def noting(*arguments):
            events.append(event)
            return call(*arguments)

        return noting

    monkeypatch.setattr(made._runner, "decode", noted("launch", made._runner.decode))
    monkeypatch.setattr(Flight, "land", noted("read", Flight.land))
    list(made.generate(requests(1, max_new_tokens=5, ignore_eos=True)))
    # The prefill's token and three of the four decoded ones are read behind the next launch.
    assert events == [
        "launch",
        "read",
        "launch",
        "read",
        "launch",
        "read",
        "launch",
        "read",
        "read",
    ]


def test_a_request_with_a_processor_is_read_before_its_next_step(monkeypatch):
    made = engine(slots=2, **PATHS["lagging"])
    known = []

    def note(answer, logits):
        known.append(len(answer))
        return logits

    request = Request(
        id="p", prompt_ids=[1, 5, 9], max_new_tokens=6, ignore_eos=True, logits_processor=note
    )
    list(made.generate([request]))
    assert known == [0, 1, 2, 3, 4, 5]


def test_a_row_that_is_not_finite_fails_alone_and_leaves_its_slot_clean(monkeypatch):
    made = engine(slots=2, **PATHS["lagging"])
    whole = made._runner.decode
    steps = 0

    def poisoned(sequences):
        nonlocal steps
        scored = whole(sequences)
        steps += 1
        for sequence, row in zip(sequences, scored.rows, strict=True):
            if sequence.request.id == "r1" and steps == 3:
                scored.logprobs[row] = float("nan")
        return scored

    monkeypatch.setattr(made._runner, "decode", poisoned)
    given = requests(4, max_new_tokens=8, ignore_eos=True)
    found = {completion.id: completion for completion in made.generate(given)}
    assert found["r1"].error_code == "non_finite"
    good = {c.id: c.token_ids for c in engine(slots=1, attention="torch").generate(given)}
    assert all(found[name].token_ids == good[name] for name in ("r0", "r2", "r3"))


def test_out_of_memory_in_prefill_is_counted_and_later_groups_are_smaller(monkeypatch):
    made = engine(slots=4, prefill_tokens=10_000, **PATHS["lagging"])
    whole = made._runner._prefill_group
    sizes = []

    def tight(group):
        sizes.append(len(group))
        if len(group) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(group)

    monkeypatch.setattr(made._runner, "_prefill_group", tight)
    given = requests(12, lengths=(9,), max_new_tokens=3, ignore_eos=True)
    assert len(list(made.generate(given))) == 12
    assert made.stats.errors == 0
    assert made.stats.memory_backoffs == 1
    assert sizes == [4, 2, 2, 2, 2, 2, 2]


def test_groups_that_wait_behind_one_without_memory_are_made_smaller_too(monkeypatch):
    made = engine(slots=8, prefill_tokens=120, **PATHS["lagging"])
    whole, sizes = made._runner._prefill_group, []

    def tight(group):
        sizes.append(len(group))
        if len(group) > 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        return whole(group)

    monkeypatch.setattr(made._runner, "_prefill_group", tight)
    given = requests(8, lengths=(9,), max_new_tokens=3, ignore_eos=True)
    assert len(list(made.generate(given))) == 8
    assert made.stats.errors == 0
    assert sizes == [4, 2, 2, 2, 2]


def test_out_of_memory_in_the_tower_halves_its_budget(monkeypatch):
    made = engine(slots=8, prefill_tokens=60, **PATHS["lagging"])
    made._runner.encoder.max_patches = 8 * TOKENS
    whole = made.llava.vision.encode
    sizes = []

    def tight(images, **budget):
        sizes.append(len(images))
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(images, **budget)

    monkeypatch.setattr(made.llava.vision, "encode", tight)
    given = requests(8, lengths=(5,), max_new_tokens=2)
    assert {completion.finish_reason for completion in made.generate(given)} <= {"stop", "length"}
    assert made.stats.memory_backoffs == 1
    assert sizes == [8, 2, 4, 2]


def test_images_are_encoded_together_apart_from_their_prefill_groups(monkeypatch):
    made = engine(slots=8, prefill_tokens=60, **PATHS["lagging"])
    made._runner.encoder.max_patches = 6 * TOKENS
    sizes, whole = [], made.llava.vision.encode

    def noted(images, **budget):
        sizes.append(len(images))
        return whole(images, **budget)

    monkeypatch.setattr(made.llava.vision, "encode", noted)
    list(made.generate(requests(8, lengths=(5,), max_new_tokens=2)))
    assert sizes == [6, 2], "groups of two, encoded by six"
    assert made.stats.images_encoded == 8
    assert made.stats.tokens_padded == 0
