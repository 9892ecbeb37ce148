"""What fits: slots against a table of cards and models, weights against models that are loaded."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaOnevisionConfig,
)

from llava_batch.demo import model_path
from llava_batch.engine import Engine
from llava_batch.engine.forward.prefill_groups import Load, groups
from llava_batch.engine.model import load, memory, quantize, sizing
from llava_batch.engine.model.llava import Llava
from llava_batch.engine.model.memory import GIB, Device

SHAPES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}
"""Hidden and inner size, layers, heads of LLaVA-1.5's language models."""
CARDS_GB = (24, 40, 80)


@cache
def config(size: str) -> LlavaConfig:
    hidden, inner, layers, heads = SHAPES[size]
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=32064, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text)


@cache
def tensors(size: str) -> list[memory.Tensor]:
    """What the headers of a float16 checkpoint of that size say; no weight is made."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config(size))
    return [(name, "F16", tuple(t.shape)) for name, t in model.named_parameters()]


def card(gigabytes: int) -> Device:
    """An idle card: what is sold as so many GB, less the driver's part and a context."""
    total = int(gigabytes * GIB * 0.985)
    return Device(name=f"a {gigabytes} GB card", total_bytes=total, free_bytes=total - GIB // 2)


def num_slots(device: Device, size: str, quantization: str | None, slot_tokens: int = 768) -> int:
    weights = memory.weights_bytes(tensors(size), torch.bfloat16, quantization)
    prefill = memory.prefill_tokens(config(size).text_config, torch.bfloat16, device)
    wants = memory.needs(
        config(size), dtype=torch.bfloat16, slot_tokens=slot_tokens, prefill_tokens=prefill,
        quantized=quantization is not None,
    )  # fmt: skip
    return wants.num_slots(device, weights)


TABLE = {
    ("7b", None): (15, 55, 154),
    ("7b", "int8"): (31, 71, 170),
    ("7b", "nf4"): (38, 78, 177),
    ("13b", None): (-11, 14, 78),
    ("13b", "int8"): (9, 34, 98),
    ("13b", "nf4"): (18, 43, 106),
}


@pytest.mark.parametrize(("size", "quantization"), TABLE)
def test_slots_of_768_tokens_on_cards_of_24_40_and_80_gb(size, quantization) -> None:
    found = tuple(num_slots(card(gb), size, quantization) for gb in CARDS_GB)
    assert found == TABLE[size, quantization]


def test_the_table_in_the_documentation_is_this_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "memory.md").read_text()
    for (size, how), slots in TABLE.items():
        weights = memory.weights_bytes(tensors(size), torch.bfloat16, how) / GIB
        cells = [f"{n}" if n > 0 else "refused" for n in slots]
        called = ", ".join(filter(None, (size.upper(), how)))
        row = f"| {called} | {weights:.1f} GiB | {' | '.join(cells)} |"
        assert row in text.replace(" slots |", " |")


@given(st.integers(4, 200), st.sampled_from(sorted(SHAPES)), st.sampled_from([None, "nf4", "int8"]),
       st.integers(600, 4096))  # fmt: skip
def test_slots_fill_what_is_left_of_a_card_and_no_more(gigabytes, size, how, slot_tokens) -> None:
    device = card(gigabytes)
    slots = num_slots(device, size, how, slot_tokens)
    weights = memory.weights_bytes(tensors(size), torch.bfloat16, how)
    prefill = memory.prefill_tokens(config(size).text_config, torch.bfloat16, device)
    assert 1280 <= prefill <= 16384
    wants = memory.needs(
        config(size), dtype=torch.bfloat16, slot_tokens=slot_tokens, prefill_tokens=prefill,
        quantized=how is not None,
    )  # fmt: skip
    each = wants.slot_bytes + wants.row_bytes
    # A twentieth of the card, and half a GiB for graphs and workspaces, stay free.
    beside = weights + wants.prefill_bytes + device.total_bytes // 20 + GIB // 2
    assert beside + slots * each <= device.free_bytes < beside + (slots + 1) * each


@given(
    st.integers(1, 9000), st.integers(1, 4000), st.sampled_from(sorted(SHAPES)),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9),
)  # fmt: skip
def test_no_pass_over_rows_of_one_slot_takes_more_than_is_planned_for_it(
    slot_tokens, budget, size, rows
) -> None:
    # A prompt longer than the budget goes alone and whole; only the budget was counted.
    text = config(size).text_config
    share = memory.gathered_share(text, torch.bfloat16)
    lengths = [max(1, round(slot_tokens * length)) for length, _ in rows]
    cached = [min(n - 1, int(n * past)) for n, (_, past) in zip(lengths, rows, strict=True)]
    waiting: Any = [
        SimpleNamespace(ids=range(n), num_cached=past, num_pending=n - past)
        for n, past in zip(lengths, cached, strict=True)
    ]
    wants = memory.needs(
        config(size), dtype=torch.bfloat16, slot_tokens=slot_tokens, prefill_tokens=budget
    )
    for group in groups(waiting, budget, padded=False, gathering=share):
        load = Load(share)
        for row in group:
            load = load.plus(row, row.num_pending)
        fed = sum(row.num_pending for row in group)
        taken = load.tokens * memory.activation_bytes(text, torch.bfloat16)
        assert taken + fed * text.hidden_size * 2 <= wants.prefill_bytes


def test_a_slot_of_7b_takes_half_a_megabyte_a_token_and_a_13b_four_fifths() -> None:
    for size, expected in (("7b", 0.5), ("13b", 0.78125)):
        wants = memory.needs(config(size), dtype=torch.bfloat16, slot_tokens=2048, prefill_tokens=1)
        assert wants.slot_bytes / 2048 / 2**20 == expected


def test_the_weights_are_those_of_the_published_sizes() -> None:
    found = [memory.weights_bytes(tensors(size), torch.float16) / 2 / 1e9 for size in SHAPES]
    assert found == pytest.approx([7.06, 13.35], abs=0.01)


def test_a_model_that_does_not_fit_is_refused_with_what_would() -> None:
    def said(gigabytes: int, dtype: torch.dtype = torch.bfloat16, how: str | None = None):
        return memory.why_not(
            config("13b"), tensors("13b"), card(gigabytes),
            dtype=dtype, quantization=how, slot_tokens=2048,
        )  # fmt: skip

    assert said(80) is None and said(16, how="nf4") is None
    assert said(24) == (
        "24.9 GiB of weights (bfloat16) and what a step takes beside them do not fit one card: a 24 GB "
        "card has 23.1 GiB free of 23.6; what fits: --quantization int8 (13.1 GiB of weights) or "
        "--quantization nf4 (7.9 GiB of weights) or a card of 40 GB"
    )
    assert "what fits: --dtype bfloat16 (24.9 GiB of weights) or" in said(40, torch.float32)
    assert said(8, how="nf4").endswith("what fits: a card of 16 GB")


@pytest.mark.parametrize("quantization", [None, *quantize.NAMES])
def test_weights_counted_from_the_headers_are_those_of_the_loaded_model(
    quantization, monkeypatch
) -> None:
    dtype = torch.float32
    for package in quantize.packages(quantization) if quantization else ():
        pytest.importorskip(package)
    if quantization == "fp8":  # for cards; its weights can be made anywhere
        dtype = torch.bfloat16
        api = pytest.importorskip("torchao.quantization.quant_api")
        monkeypatch.setattr(api, "_check_hardware_support", lambda _: None)
    model = load.read_weights(model_path(), dtype, "cpu", quantization)
    counted = memory.weights_bytes(memory.headers(model_path()), dtype, quantization)
    assert counted == sum(map(held_bytes, model.parameters()))


def held_bytes(weight: torch.Tensor) -> int:
    """What a weight and its scales take, by each library's own attributes."""
    parts = [weight]
    if hasattr(weight, "qdata"):  # torchao
        parts = [weight.qdata, weight.scale]
        parts += [weight.zero_point] if hasattr(weight, "zero_point") else []
    elif getattr(weight, "quant_state", None) is not None:  # bitsandbytes, 4 bits
        parts.append(weight.quant_state.absmax)
    elif getattr(weight, "SCB", None) is not None:  # bitsandbytes, 8 bits
        parts.append(weight.SCB)
    return sum(part.numel() * part.element_size() for part in parts)


def test_a_header_is_read_without_the_weights(tmp_path) -> None:
    header = {
        "__metadata__": {},
        "a.weight": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model-00001.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    found = list(memory.headers(tmp_path))
    assert found == [("a.weight", "BF16", (3, 5))]
    assert memory.weights_bytes(found, torch.float32) == 60
    assert memory.weights_bytes(found, torch.float32, "int8") == 15 + 3 * 4


class OnCard:
    """Of an engine's model, what sizing asks for, as if it lay on a card."""

    def __init__(self, size: str) -> None:
        self.config, self.text_config = config(size), config(size).text_config
        self.dtype, self.device = torch.bfloat16, torch.device("cuda")


@pytest.mark.parametrize(
    ("free_gib", "slot_tokens", "rows", "slots"),
    [(60, 2048, 53, 53), (60, 704, 153, 153), (60, 256, 256, 256), (60, "auto", 140, 140),
     (2, 2048, 1, 1)],
)  # fmt: skip
def test_slots_are_sized_when_the_weights_are_loaded(
    monkeypatch, free_gib, slot_tokens, rows, slots
) -> None:
    device = Device(name="a card", total_bytes=80 * GIB, free_bytes=free_gib * GIB)
    monkeypatch.setattr(sizing, "card", lambda _: device)
    model = cast(Llava, OnCard("7b"))
    plan = sizing.plan(
        model, slots="auto", slot_tokens=slot_tokens, max_tokens="auto", prefill_tokens="auto"
    )
    assert (plan.num_rows, plan.num_slots, plan.prefill_tokens) == (rows, slots, 16384)
    assert plan.slot_tokens == (768 if slot_tokens == "auto" else slot_tokens)
    assert plan.max_tokens == 4096, "the model's positions, however long a slot is"


def test_few_rows_have_slots_for_the_longest_request_where_memory_has_room(monkeypatch) -> None:
    model = cast(Llava, OnCard("7b"))
    monkeypatch.setattr(sizing, "auto_prefill_tokens", lambda _: 16384)
    how: dict[str, Any] = {"slot_tokens": 768, "max_tokens": "auto", "prefill_tokens": "auto"}
    for fit, expected in ((99, 6), (4, 4), (1, 2)):
        monkeypatch.setattr(sizing, "fitting_slots", lambda *_, fit=fit: fit)
        found = sizing.plan(model, slots=2, **how)
        assert (found.num_rows, found.num_slots) == (2, expected)


def test_a_model_that_does_not_fit_stops_before_its_weights_are_read(monkeypatch) -> None:
    small = Device(name="a toy card", total_bytes=2**29, free_bytes=2**22)
    monkeypatch.setattr(load, "card", lambda _: small)
    monkeypatch.setattr(load, "capability", lambda _: (8, 6))
    monkeypatch.setattr(load, "read_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=r"do not fit one card: a toy card has 0\.0 GiB free"):
        Engine.load(model_path(), device="cuda")


@pytest.mark.parametrize(
    ("config", "tokens"),
    [(LlavaConfig(), 576), (LlavaNextConfig(), 5 * 576), (LlavaOnevisionConfig(), 10 * 729)],
    ids=lambda given: getattr(given, "model_type", given),
)
def test_a_slot_has_room_for_a_large_image_of_its_family_by_itself(config, tokens) -> None:
    room = sizing.ROOM_TOKENS
    assert sizing.choose_slot_tokens(config, "auto", 10**6) == tokens + room
