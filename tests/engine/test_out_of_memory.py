"""Memory that runs out anywhere in a step costs time, never another row's answer and never the worker."""

import random

import pytest
import torch
from test_lag import alone, answers, mixture
from tiny_llava import PATHS, by_key, engine, reference, requests

from llava_batch.engine import picks, sampling
from llava_batch.engine.forward.runner import Runner
from llava_batch.engine.readback import Flight
from llava_batch.engine.sampling import Sampler

pytestmark = pytest.mark.usefixtures("path")


MOST_SCORES = 3
"""Rows of logits that one sequence asks for at most: one for each token of its choice."""


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def for_few(work, most: int, size=lambda given: len(given)):
    """`work`, for which there is memory for `most` rows at once."""

    def tight(*given, **named):
        if size(*given[:1]) > most:
            no_memory()
        return work(*given, **named)

    return tight


def test_a_draw_that_finds_no_memory_is_made_by_fewer_rows(monkeypatch):
    whole = Sampler._draw
    monkeypatch.setattr(
        Sampler,
        "_draw",
        lambda self, logits, rows: for_few(whole, 2, lambda _: len(rows))(self, logits, rows),
    )
    assert answers(mixture(), slots=8) == alone("multi-head")


def test_choices_that_find_no_memory_are_scored_by_fewer_rows(monkeypatch):
    given = requests(5, choices=((5, 9), (17,), (30, 31, 32)))
    expected = answers(given, slots=1)
    monkeypatch.setattr(picks, "choice_scores", for_few(sampling.choice_scores, 1))
    assert answers(given, slots=8) == expected


def test_a_prefills_scores_that_find_no_memory_are_made_by_fewer_rows(monkeypatch):
    whole = Runner.score
    monkeypatch.setattr(
        Runner,
        "score",
        lambda self, logits: for_few(whole, MOST_SCORES, lambda _: len(logits))(self, logits),
    )
    assert answers(mixture(), slots=8) == alone("multi-head")


@pytest.mark.parametrize("seed", range(6))
def test_memory_that_is_short_now_and_then_changes_no_answer(monkeypatch, seed):
    chance = random.Random(seed)

    def at_times(work, place, rows=1):
        """`work`, that fails now and then where more than one sequence is at hand."""

        def tight(*given, **named):
            if len(given[place]) > rows and chance.random() < 0.1:
                no_memory()
            return work(*given, **named)

        return tight

    monkeypatch.setattr(Sampler, "_draw", at_times(Sampler._draw, 1))
    monkeypatch.setattr(picks, "choice_scores", at_times(sampling.choice_scores, 0))
    monkeypatch.setattr(Flight, "depart", staticmethod(at_times(Flight.depart, 0)))
    monkeypatch.setattr(Runner, "score", at_times(Runner.score, 1, MOST_SCORES))
    monkeypatch.setattr(Runner, "decode", at_times(Runner.decode, 1))
    monkeypatch.setattr(Runner, "keep", at_times(Runner.keep, 2))
    monkeypatch.setattr(Runner, "_prefill_group", at_times(Runner._prefill_group, 1))
    given = mixture()
    chance.shuffle(given)
    assert answers(given, slots=2 + 3 * seed) == alone("multi-head")


@pytest.mark.parametrize("step", ["first", "later"])
def test_a_row_that_alone_finds_no_memory_to_be_drawn_is_an_error_of_its_own(monkeypatch, step):
    whole, seen = Sampler._draw, []

    def tight(sampler, logits, rows):
        if any(row.request.temperature == 0.75 for row in rows):
            seen.append(len(logits))
            if step == "first" or len(seen) > 2:
                no_memory()
        return whole(sampler, logits, rows)

    monkeypatch.setattr(Sampler, "_draw", tight)
    given = requests(4, max_new_tokens=8, ignore_eos=True)
    greedy, drawn = given[:3], requests(6, temperature=0.5, max_new_tokens=8)[4:]
    bad = requests(7, temperature=0.75, max_new_tokens=8, ignore_eos=True)[6]
    expected = by_key(list(engine(slots=1).generate(drawn)))
    found = by_key(
        list(engine(slots=6).generate([greedy[0], drawn[0], bad, *greedy[1:], drawn[1]]))
    )
    assert found[(bad.id, 0, 0)].error_code == "out_of_memory"
    assert all(found[key].token_ids == expected[key].token_ids for key in expected)
    for request in greedy:
        assert found[(request.id, 0, 0)].token_ids == reference("multi-head", request)[0]


def test_a_row_that_is_left_over_when_its_neighbours_have_ended_is_tried_alone(monkeypatch):
    made = engine(slots=3, **PATHS["lagging"])
    whole, sizes = made._runner.decode, []

    def tight(sequences):
        sizes.append(len(sequences))
        if len(sizes) == 3:  # two of the three rows end with what is in flight
            no_memory()
        return whole(sequences)

    monkeypatch.setattr(made._runner, "decode", tight)
    long, *short = requests(3, max_new_tokens=9, ignore_eos=True)
    first = by_key(list(engine(slots=1).generate([long, *short])))
    ends = [first[(r.id, 0, 0)].token_ids[2:3] for r in short]
    stopped = [
        type(r)(**{**vars(r), "stop": (end,), "ignore_eos": True})
        for r, end in zip(short, ends, strict=True)
    ]
    found = by_key(list(made.generate([long, *stopped])))
    assert sizes[2:4] == [3, 1]
    assert found[(long.id, 0, 0)].token_ids == first[(long.id, 0, 0)].token_ids


def test_room_that_was_given_up_comes_back_while_steps_go_well(monkeypatch):
    made = engine(slots=8)
    whole, calls = made._runner.decode, []

    def tight(sequences):
        calls.append(len(sequences))
        if len(calls) == 2:
            no_memory()
        return whole(sequences)

    monkeypatch.setattr(made._runner, "decode", tight)
    given = requests(200, max_new_tokens=9, ignore_eos=True)
    found = by_key(list(made.generate(given)))
    assert not [c for c in found.values() if c.error_code]
    assert max(calls[2:20]) <= 4
    assert max(calls[20:]) == 8
