"""A decoder layer in one call has the bits of its parts; a prefill's last one makes no more than is scored."""

import copy

import pytest
import torch
from families import ROPES, roped
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cpu import kernels
from tiny_llava import SHAPES, by_key, engine, reference, requests, tiny
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_batch.engine import Engine, Request
from llava_batch.engine.kernels import cpu_decoder, cpu_layers, cpu_whole
from llava_batch.engine.kernels.cpu_decoder import (
    BY_PLACE,
    FusedAttention,
    FusedLayer,
    LastAttention,
    Rotation,
)
from llava_batch.engine.kernels.cpu_linear import linear
from llava_batch.engine.passes import Rows

DTYPES = (torch.float32, torch.bfloat16)


def made(dtype, shape: str, **options) -> Engine:
    kernels(dtype)
    return Engine(copy.deepcopy(tiny(shape)).to(dtype), attention="native", **options)


def expected(shape: str, asked: list[Request]) -> dict[tuple[str, int, int], tuple[int, ...]]:
    return {(r.id, 0, 0): reference(shape, r)[0] for r in asked}


def last_layer(made: Engine) -> FusedLayer:
    layers = made.llava.language_model.layers
    kinds = [FusedAttention] * (len(layers) - 1) + [LastAttention]
    assert [type(layer.attention) for layer in layers] == kinds
    return layers[-1]


def fed(part: torch.nn.Module) -> list[int]:
    """Filled with how many places a module is called for, call by call."""
    found: list[int] = []
    part.register_forward_pre_hook(lambda _, args: found.append(args[0].shape[:-1].numel()))
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_only_scored_places_go_through_the_last_layer(shape):
    one = made(torch.float32, shape, slots=4)
    layer = last_layer(one)
    through, keys, queries = (
        fed(part) for part in (layer.mlp, layer.attention.keys_values, layer.attention.query)
    )
    asked = [
        Request(id=str(n), prompt_ids=[1, *range(5, 25 + n)], max_new_tokens=3, min_new_tokens=3)
        for n in range(3)
    ]
    assert len(list(one.generate(asked))) == 3
    # The two decode steps, of which all places are scored, have it in one call with the other layers.
    assert (through, queries) == ([3], [3])
    assert keys == [3 * 23]


def test_of_a_choice_as_many_places_as_are_scored_go_through_it():
    one = made(torch.float32, "multi-head", slots=4, reuse=False)
    through = fed(last_layer(one).mlp)
    choices = ((7, 8, 9), (10,))
    asked = Request(id="0", prompt_ids=[1, *range(5, 25)], max_new_tokens=1, choices=choices)
    list(one.generate([asked]))
    assert through == [2 * 3]


@pytest.mark.parametrize("shape", SHAPES)
def test_its_answers_are_those_of_transformers(shape):
    kernels(torch.float32)
    asked = requests(8)
    found = by_key([*engine(shape, attention="native").generate(asked)])
    assert {key: c.token_ids for key, c in found.items()} == expected(shape, asked)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_in_one_call_layers_have_the_bits_of_their_parts(dtype, data):
    """Hidden states, keys and values; padding is nobody's."""
    shape = data.draw(st.sampled_from(SHAPES))
    one = made(dtype, shape, slots=4, slot_tokens=64, max_tokens=64)
    with_last = data.draw(st.booleans())
    count = data.draw(st.integers(1, 4))
    new = tuple(data.draw(st.sampled_from([1, 1, 5, 20])) for _ in range(count))
    past = tuple(data.draw(st.sampled_from([0, 7, 40])) for _ in range(count))
    rows = Rows(slots=tuple(range(count)), past=past, new=new)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(count, rows.length, 64).to(dtype)
    stack, cache = one.llava.language_model, one.cache
    (call,) = stack.calls_for_all if with_last else stack.calls
    layers = stack.layers if with_last else stack.layers[:-1]
    assert len(call.layers) == len(layers)
    slots = [(layer.keys, layer.values) for layer in cache.slot_layers[: len(layers)]]
    turns = torch.randn(2, count, rows.length, slots[0][0].shape[3]).to(dtype).unbind()
    for part in sum(slots, ()):
        part.normal_()
    cache.select(rows)
    before = [part.clone() for part in (x, *sum(slots, ()))]
    found = []
    for together in (True, False):
        for part, held in zip(sum(slots, ()), before[1:], strict=True):
            part.copy_(held)
        out = x
        if together:
            out = call(x, turns, slots, rows, room=64)
        else:
            for layer in layers:
                out = layer(out, turns, cache)
        told = [out[row, -n:] for row, n in enumerate(new)]
        found.append([*told, *(part.clone() for part in sum(slots, ()))])
    assert torch.equal(x, before[0])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_layer_that_is_not_known_whole_is_computed_part_by_part(monkeypatch):
    monkeypatch.setattr(cpu_layers, "MLPS", set())
    one = made(torch.float32, "multi-head", slots=3)
    stack = one.llava.language_model
    assert [layer.whole for layer in stack.layers] == [None] * 3
    assert stack.calls == stack.calls_for_all == []
    asked = requests(5)
    found = by_key([*one.generate(asked)])
    assert {key: c.token_ids for key, c in found.items()} == expected("multi-head", asked)


def test_a_last_layer_whose_queries_end_within_a_panel_is_computed_part_by_part(monkeypatch):
    def apart(query, *others):
        return None, linear(query), linear(*others)

    monkeypatch.setattr(cpu_decoder, "in_two", apart)
    one = made(torch.float32, "multi-head", slots=3)
    stack = one.llava.language_model
    assert [layer.whole is None for layer in stack.layers] == [False, False, True]
    assert [len(call.layers) for call in stack.calls_for_all] == [2]
    asked = requests(5)
    found = by_key([*one.generate(asked)])
    assert {key: c.token_ids for key, c in found.items()} == expected("multi-head", asked)


def whole_layer() -> cpu_whole.Layer:
    return made(torch.float32, "multi-head").llava.language_model.layers[0].whole


def test_layers_of_one_kind_are_in_one_call_and_of_large_ones_fewer(monkeypatch):
    one = whole_layer()
    other = one._replace(num_heads=one.num_heads + 1)
    sizes = [len(call) for call in cpu_whole.in_calls([one, one, other, one, one, one])]
    assert sizes == [2, 1, 3]
    for most, sizes in ((2 * one.num_bytes, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(cpu_whole, "MOST_BYTES", most)
        assert [len(call) for call in cpu_whole.in_calls([one] * 5)] == sizes
    assert cpu_whole.in_calls([]) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_in_calls_of_their_own_layers_answer_as_transformers(monkeypatch, shape):
    monkeypatch.setattr(cpu_whole, "MOST_BYTES", 1)
    asked = requests(5)
    one = made(torch.float32, shape, slots=3)
    assert len(one.llava.language_model.calls) == len(one.llava.language_model.layers) - 1
    found = by_key([*one.generate(asked)])
    assert {key: c.token_ids for key, c in found.items()} == expected(shape, asked)


@pytest.mark.parametrize("part", ["qkv", "out", "gated", "down", "before", "behind"])
def test_a_layer_of_several_dtypes_is_not_computed_whole(part):
    one = whole_layer()
    assert one.fits
    held = getattr(one, part)
    name = "weight" if part.startswith("be") else "panels"
    other = held._replace(**{name: getattr(held, name).bfloat16()})
    assert not one._replace(**{part: other}).fits


@pytest.mark.parametrize("family", ["STACKS", "DECODERS"])
def test_what_is_not_known_as_a_stack_is_transformers_own(monkeypatch, family):
    monkeypatch.setattr(cpu_layers, family, set())
    one = made(torch.float32, "multi-head", slots=3)
    assert type(one.llava.language_model).__name__ == "LlamaModel"
    asked = requests(5)
    found = by_key([*one.generate(asked)])
    assert {key: c.token_ids for key, c in found.items()} == expected("multi-head", asked)


def test_what_is_no_layers_input_is_refused():
    one = made(torch.bfloat16, "multi-head", slots=1)
    stack, cache = one.llava.language_model, one.cache
    rows = Rows(slots=(0,), past=(0,), new=(2,))
    cache.select(rows)
    turns = tuple(torch.zeros(2, 1, 2, 16).bfloat16())
    slots = [(layer.keys, layer.values) for layer in cache.slot_layers[:-1]]
    for x in (torch.zeros(1, 2, 64), torch.zeros(1, 2, 62).bfloat16()):
        for refused in (
            lambda x=x: stack.calls[0](x, turns, slots, rows, room=64),
            lambda x=x: stack.layers[0](x, turns, cache),
        ):
            with pytest.raises(ValueError, match=r"by a weight of torch\.bfloat16 with 64"):
                refused()
    with pytest.raises(ValueError, match="FusedStack asks its attention for softcap"):
        stack(torch.zeros(1, 2, 64).bfloat16(), torch.zeros(1, 2).long(), cache, softcap=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_its_places_have_the_bits_that_all_of_them_together_have(dtype, data):
    """Whatever is scored of a pass, and whoever is beside it."""
    shape = data.draw(st.sampled_from(SHAPES))
    one = made(dtype, shape, slots=4, slot_tokens=64, max_tokens=64)
    count = data.draw(st.integers(1, 4))
    new = tuple(data.draw(st.integers(1, 20)) for _ in range(count))
    past = tuple(data.draw(st.sampled_from([0, 0, 7])) for _ in range(count))
    rows = Rows(slots=tuple(range(count)), past=past, new=new)
    scored = data.draw(st.integers(1, rows.length))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    embeds = torch.randn(count, rows.length, 64).to(dtype)
    positions = torch.stack(
        [torch.arange(rows.length) + p + n - rows.length for p, n in zip(past, new, strict=True)]
    )
    positions = positions.clamp(min=0)
    with torch.inference_mode():
        whole = one.llava.forward(embeds, positions, one.cache, rows)
        few = Rows(slots=rows.slots, past=past, new=new, scored=scored)
        found = one.llava.forward(embeds, positions, one.cache, few)
    assert found.shape == (count, scored, 64)
    for row, n in enumerate(new):
        kept = min(n, scored)
        assert torch.equal(found[row, -kept:], whole[row, -kept:])


def test_a_layer_of_another_kind_is_cut_behind_the_model(monkeypatch):
    monkeypatch.setattr(cpu_layers, "DECODERS", set())
    one = made(torch.float32, "multi-head", slots=3)
    assert not any(isinstance(part, LastAttention) for part in one.llava.model.modules())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ROPES)
def test_a_place_is_turned_as_transformers_turns_it_in_any_pass(kind, dtype):
    rotary = LlamaRotaryEmbedding(roped(kind, **ROPES[kind]))
    rotation, x = Rotation(rotary), torch.zeros(1, 1, 1, dtype=dtype)
    calls = fed(rotary)
    # The second has more places than the first was said to have.
    passes = [(torch.randint(0, 40, (3, 7)), 40), (torch.arange(90)[None], 90)]
    passes += [(torch.tensor([[89], [0], [31]]), 90)]
    for positions, most_tokens in passes:
        found = rotation(x, positions, most_tokens)
        for turns, theirs in zip(found, rotary(x, positions), strict=True):
            assert turns.shape == (*positions.shape, 16)
            assert torch.equal(turns, theirs)
    assert len(calls) - len(passes) == (2 if kind in BY_PLACE else 3)
