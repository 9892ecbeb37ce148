"""Sampling many rows at once follows the rule for one row, whatever the other rows are."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.engine import Request
from llava_batch.engine.sampling import Sampler, Scored, draw
from llava_batch.engine.sequence import sequences

RULES = st.tuples(
    st.floats(0.05, 3.0),
    st.integers(0, 12),
    st.floats(0.01, 1.0),
    st.floats(0, 1, exclude_max=True),
)


def one_by_one(logits: list[float], temperature, top_k, top_p, point) -> int:
    """The rule written as a loop: temperature, the top_k likeliest, of these the least set of top_p."""
    order = sorted(range(len(logits)), key=lambda n: -logits[n])
    order = order[:top_k] if top_k else order
    weights = [math.exp((logits[n] - logits[order[0]]) / temperature) for n in order]
    total = sum(weights)
    kept, mass = [], 0.0
    for number, weight in zip(order, weights, strict=True):
        if top_p < 1 and mass >= top_p:
            break
        kept.append((number, weight / total))
        mass += weight / total
    target, mass = point * sum(share for _, share in kept), 0.0
    for number, share in kept:
        mass += share
        if mass > target:
            return number
    return kept[-1][0]


@settings(max_examples=200, deadline=None)
@given(rules=st.lists(RULES, min_size=1, max_size=5), seed=st.integers(0, 10_000))
def test_each_row_is_drawn_by_its_own_rules(rules, seed):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (len(rules), 12))).float()
    columns = torch.tensor(rules, dtype=torch.float64).T
    found = draw(logits, *columns).tolist()
    for row, (temperature, top_k, top_p, point) in enumerate(rules):
        # A float32 quotient stands on the other side of a border now and then.
        near = {one_by_one(logits[row].double().tolist(), temperature, top_k, p, q)
                for p in (top_p - 1e-6, top_p, min(1.0, top_p + 1e-6))
                for q in (max(0.0, point - 1e-6), point, point + 1e-6)}  # fmt: skip
        assert found[row] in near
    alone = [int(draw(logits[r : r + 1], *columns[:, r : r + 1])) for r in range(len(rules))]
    assert found == alone


def test_a_row_that_is_not_finite_still_names_a_token():
    logits = torch.randn(4, 9)
    logits[0] = float("nan")
    logits[1, 3] = float("inf")
    logits[2] = float("-inf")
    rules = [torch.full((4,), value, dtype=torch.float64) for value in (0.7, 0.0, 0.9, 0.99)]
    found = draw(logits, *rules)
    assert ((found >= 0) & (found < 9)).all()


def test_the_nth_token_has_the_nth_number_also_behind_tokens_that_were_given_up():
    request = Request(id="a", prompt_ids=[1, 2], turns=((3,),), temperature=1.0)

    def fresh():
        return sequences(request, [], -1, 1)[0]

    plain = fresh()
    expected = []
    for _ in range(6):
        expected.append(plain.next_point())
        plain.append(5, 0.0)
    assert len(set(expected)) == 6
    ahead, found = fresh(), []
    for turn in range(2):
        for _ in range(3):
            found.append(ahead.next_point())
            ahead.in_flight += 1
            ahead.next_point()  # the next step's, drawn while this one's token is in flight
            ahead.in_flight -= 1
            ahead.append(5, 0.0)
        if turn == 0:
            ahead.in_flight += 1
            ahead.next_turn()
    assert found == expected


def test_a_row_that_comes_back_to_a_slot_is_penalised_for_what_it_said_elsewhere():
    (row,) = sequences(Request(id="a", prompt_ids=[1], repetition_penalty=2.0), [], -1, 1)
    sampler = Sampler(frozenset(), 2, torch.device("cpu"))
    logits = torch.tensor([[0.0, 0.0, 3.0, 2.9, 2.8]])
    scored = Scored(logits=logits, best=torch.tensor([2]), logprobs=torch.zeros(1), rows=[0])
    said = []
    for slot in (0, 1, 0):
        row.slot = slot
        sampler.forget([slot])
        said.append(int(sampler.pick(scored, [row], [0])[0]))
        row.append(said[-1], 0.0)
    assert said == [2, 3, 4]
