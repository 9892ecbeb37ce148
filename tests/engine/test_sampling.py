"""Sampling many rows at once follows the rule for one row, whatever the other rows are."""

import copy
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llava import tiny
from torch import is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava_batch.engine import Request, sampling
from llava_batch.engine import draw as drawing
from llava_batch.engine.draw import draw
from llava_batch.engine.kernels import cpu, cpu_build
from llava_batch.engine.model import memory
from llava_batch.engine.sampling import Sampler, Scored
from llava_batch.engine.sequence import sequences

HOW = pytest.mark.parametrize("how", ["plain", "native"])


def drawing_by(how: str):
    """torch's own way, which a card has too, or the kernel of the CPU."""
    if how == "plain":
        return draw
    if missing := cpu_build.why_not(torch.float32) or cpu_build.why_not_built(torch.float32):
        pytest.skip(missing)
    return cpu.draw


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


@HOW
@settings(max_examples=200, deadline=None)
@given(rules=st.lists(RULES, min_size=1, max_size=5), seed=st.integers(0, 10_000))
def test_each_row_is_drawn_by_its_own_rules(how, rules, seed):
    draw = drawing_by(how)
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


def in_order(logits, temperature, top_k, top_p, point):
    """Every token of every row put in order, in double throughout: what seeds have drawn so far."""
    scaled = logits / temperature.float()[:, None]
    ordered, order = torch.sort(scaled, dim=-1, descending=True, stable=True)
    size = logits.shape[-1]
    places = torch.arange(size)
    limit = torch.where(top_k > 0, top_k, size)[:, None]
    ordered = ordered.masked_fill(places >= limit, float("-inf"))
    probabilities = torch.softmax(ordered.double(), dim=-1)
    total = probabilities.cumsum(dim=-1)
    kept = (places < limit) & ((total - probabilities < top_p[:, None]) | (top_p[:, None] >= 1))
    last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    place = torch.searchsorted(total, point[:, None] * total.gather(1, last), right=True)
    return order.gather(1, torch.minimum(place, last))[:, 0]


@HOW
@settings(max_examples=400, deadline=None)
@given(
    rules=st.lists(
        st.tuples(
            st.floats(0.05, 3.0),
            st.sampled_from([0, 0, 0, 1, 7, 8, 9, 40]),
            st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
            st.floats(0, 1, exclude_max=True),
        ),
        min_size=1,
        max_size=6,
    ),
    size=st.integers(17, 90),
    spread=st.sampled_from([0.0, 1e-30, 0.1, 3.0, 30.0, 3000.0]),
    banned=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 10_000),
)
def test_a_seed_draws_what_it_always_drew(how, rules, size, spread, banned, dtype, seed):
    draw = drawing_by(how)
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, spread, (len(rules), size))).to(dtype).float()
    logits[torch.from_numpy(rng.random(logits.shape) < banned)] = float("-inf")
    columns = list(torch.tensor(rules, dtype=torch.float64).T)
    whole, drawing.HEAD = drawing.HEAD, 8
    try:
        found = draw(logits, *columns)
    finally:
        drawing.HEAD = whole
    assert found.tolist() == in_order(logits, *columns).tolist()


def test_few_rows_of_a_language_model_are_put_in_order_whole(monkeypatch):
    rows, whole = [], drawing.from_all

    def counted(scaled, *rules):
        rows.append(len(scaled))
        return whole(scaled, *rules)

    monkeypatch.setattr(drawing, "from_all", counted)
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.gumbel(0, 2, (200, 32_064))).float()  # peaked, as answers are
    rules = [
        rng.uniform(0.2, 1.0, 200),
        np.zeros(200),
        rng.choice([0.9, 1.0], 200),
        rng.random(200),
    ]
    columns = [torch.from_numpy(rule) for rule in rules]
    assert draw(logits, *columns).tolist() == in_order(logits, *columns).tolist()
    assert sum(rows) < 100


class Alive(TorchDispatchMode):
    """The most bytes that tensors made meanwhile take at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._now = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if is_tensor(t)}
        made = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(made) if is_tensor(t)):
            key, size = storage._cdata, storage.nbytes()
            if id(storage) not in given and key not in self._known:
                self._known.add(key)
                self._now += size
                self.most = max(self.most, self._now)
                weakref.finalize(storage, self._gone, key, size)
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def planned_bytes() -> int:
    """What a card is planned to have for each logit of a row, beside the logit itself."""
    config = copy.deepcopy(tiny().config)
    rows = []
    for size in (1000, 2000):
        config.text_config.vocab_size = size
        made = memory.needs(config, dtype=torch.float32, slot_tokens=9, prefill_tokens=1)
        rows.append(made.row_bytes)
    return (rows[1] - rows[0]) // 1000 - torch.float32.itemsize


@pytest.mark.parametrize("head", [drawing.HEAD, 2**20], ids=["head", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pick_takes_no_more_memory_than_is_planned_for_it(monkeypatch, head, dtype):
    monkeypatch.setattr(drawing, "HEAD", head)
    num_rows, size = 6, 32_000
    rules: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "min_new_tokens": 4,
    }
    rows = [
        sequences(Request(id=str(n), prompt_ids=[1], **rules), [], -1, [])[0]
        for n in range(num_rows)
    ]
    for slot, row in enumerate(rows):
        row.slot = slot
    sampler = Sampler(frozenset({2}), num_rows, torch.device("cpu"))
    logits = torch.randn(num_rows, size, dtype=dtype)
    scored = Scored(
        logits=logits,
        best=logits.argmax(-1),
        logprobs=torch.zeros(num_rows),
        rows=list(range(num_rows)),
    )
    with torch.inference_mode(), Alive() as alive:
        sampler.pick(scored, rows, scored.rows)
    assert alive.most / logits.numel() <= planned_bytes()


@pytest.mark.parametrize("spread", [0.02, 1.0, 8.0])
def test_the_kernel_puts_hardly_a_row_in_order_however_even_its_tokens_are(monkeypatch, spread):
    native, rows, whole = drawing_by("native"), [], drawing.from_all

    def counted(scaled, *rules):
        rows.append(len(scaled))
        return whole(scaled, *rules)

    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, spread, (100, 32_000))).float()
    rules = [rng.uniform(0.3, 2, 100), np.zeros(100), rng.choice([0.5, 0.9, 1.0], 100)]
    columns = [torch.from_numpy(rule) for rule in (*rules, rng.random(100))]
    expected = in_order(logits, *columns).tolist()
    monkeypatch.setattr(drawing, "from_all", counted)
    assert native(logits, *columns).tolist() == expected
    assert sum(rows) <= 2


@HOW
def test_a_row_that_is_not_finite_still_names_a_token(how):
    draw = drawing_by(how)
    for size in (9, 3 * drawing.HEAD):
        logits = torch.randn(4, size)
        logits[0] = float("nan")
        logits[1, 3] = float("inf")
        logits[2] = float("-inf")
        rules = [torch.full((4,), value, dtype=torch.float64) for value in (0.7, 0.0, 0.9, 0.99)]
        found = draw(logits, *rules)
        assert found.tolist() == in_order(logits, *rules).tolist()
        assert ((found >= 0) & (found < size)).all()


def test_the_nth_token_has_the_nth_number_also_behind_tokens_that_were_given_up():
    request = Request(id="a", prompt_ids=[1, 2], turns=((3,),), temperature=1.0)

    def fresh():
        return sequences(request, [], -1, [])[0]

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
    (row,) = sequences(Request(id="a", prompt_ids=[1], repetition_penalty=2.0), [], -1, [])
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


class Below:
    """Hides the tokens from `end` on."""

    def __init__(self, end: int) -> None:
        self.end = end

    def __call__(self, answer, logits):
        raise AssertionError("row by row")

    def hidden_tokens(self, answer, size):
        return np.arange(size) >= self.end


def test_what_several_rows_hide_is_sent_in_one_copy(monkeypatch):
    ends, size = (7, 30, 3), 40
    rules: list[dict[str, Any]] = [{"logits_processor": Below(end)} for end in ends]
    asked: list[dict[str, Any]] = [{}, *rules[:2], {"temperature": 1.0}, rules[2]]
    rows = [
        sequences(Request(id=str(n), prompt_ids=[1], **rule), [], -1, [])[0]
        for n, rule in enumerate(asked)
    ]
    sent = []

    def counted(array, device):
        sent.append(array)
        return torch.from_numpy(array)

    monkeypatch.setattr(sampling, "on_device", counted)
    logits = torch.randn(len(rows), size, generator=torch.Generator().manual_seed(3))
    scored = Scored(
        logits=logits, best=logits.argmax(-1), logprobs=torch.zeros(5), rows=[*range(5)]
    )
    tokens, _ = Sampler(frozenset({2}), 5, torch.device("cpu")).pick(scored, rows, scored.rows)
    assert [array.shape for array in sent if array.dtype == bool] == [(3, size)]
    for row, end in zip((1, 2, 4), ends, strict=True):
        assert tokens[row] == logits[row, :end].argmax()
    assert tokens[0] == logits[0].argmax()
