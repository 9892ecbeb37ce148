"""Left padding, masks and positions: right as they are, and seen to fail when off by one."""

import copy

import numpy as np
import pytest
import torch
from tiny_llava import (
    SHAPES,
    TOKENS,
    engine,
    image,
    pixel_values,
    prompt,
    reference,
    requests,
    tiny,
)

from llava_batch.engine import Engine, Request
from llava_batch.engine.forward import runner
from llava_batch.engine.kernels import plain
from llava_batch.engine.passes import Rows


def answers(made: Engine, given: list[Request]) -> list[tuple[int, ...]]:
    found = {completion.id: completion.token_ids for completion in made.generate(given)}
    return [found[request.id] for request in given]


def expected(given: list[Request], shape: str = "multi-head") -> list[tuple[int, ...]]:
    return [reference(shape, request)[0] for request in given]


@torch.inference_mode()
def batch_of_five(side: str) -> list[tuple[int, ...]]:
    """Five lengths in one batch of transformers' own `generate`, padded on that side."""
    model, given = tiny("multi-head"), requests(5, max_new_tokens=8, ignore_eos=True)
    length = max(len(request.prompt_ids) for request in given)
    ids = torch.zeros(5, length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(given):
        size = len(request.prompt_ids)
        place = slice(length - size, length) if side == "left" else slice(0, size)
        ids[row, place] = torch.tensor(request.prompt_ids)
        mask[row, place] = 1
    pixels = pixel_values(np.concatenate([request.pixels for request in given]), model)
    out = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=8, eos_token_id=-1
    )
    return [tuple(row) for row in out[:, length:].tolist()]


def test_left_padding_answers_as_alone_and_right_padding_does_not():
    alone = expected(requests(5, max_new_tokens=8, ignore_eos=True))
    assert batch_of_five("left") == alone
    assert batch_of_five("right") != alone


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_padded_row_answers_as_alone(kernels):
    given = requests(5, max_new_tokens=8)
    made = engine(slots=5, prefill_tokens=10_000, attention=kernels)
    assert answers(made, given) == expected(given)
    assert made.stats.tokens_padded > 0


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_position_off_by_one_is_noticed(monkeypatch, shift):
    whole = runner.rows_of

    def broken(sequences):
        rows = whole(sequences)
        past = tuple(max(0, number + shift * (rows.length == 1)) for number in rows.past)
        return Rows(slots=rows.slots, past=past, new=rows.new)

    monkeypatch.setattr(runner, "rows_of", broken)
    given = requests(5, max_new_tokens=12, ignore_eos=True)
    assert answers(engine(slots=5), given) != expected(given)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_off_by_one_is_noticed(monkeypatch, shift):
    whole = plain.masked_softmax
    monkeypatch.setattr(
        plain,
        "masked_softmax",
        lambda scores, positions, first, window: whole(
            scores, (positions + shift).clamp(min=0), first, window
        ),
    )
    given = requests(5, max_new_tokens=12, ignore_eos=True)
    assert answers(engine(slots=5, attention="torch"), given) != expected(given)


def test_padding_read_as_text_is_noticed(monkeypatch):
    whole = runner.left_padded

    def broken(group, rows):
        shape, ids, positions, places, last = whole(group, rows)
        return shape, np.roll(ids.reshape(shape), -1, axis=1).ravel(), positions, places - 1, last

    monkeypatch.setattr(runner, "left_padded", broken)
    given = requests(5, max_new_tokens=12, ignore_eos=True)
    assert answers(engine(slots=5), given) != expected(given)


@pytest.mark.parametrize("kernels", ["auto", "torch", "sdpa"])
def test_a_row_beside_one_much_longer_is_finite(kernels):
    """Rows that are nearly all padding: a fully masked row must give neither NaN nor a neighbour's."""
    short = Request(id="short", prompt_ids=[1], max_new_tokens=6, ignore_eos=True)
    long = Request(
        id="long", pixels=image(1), prompt_ids=prompt(1, 60), max_new_tokens=6, ignore_eos=True
    )
    made = engine(slots=2, prefill_tokens=10_000, attention=kernels)
    found = {c.id: c for c in made.generate([short, long])}
    assert found["short"].token_ids == reference("multi-head", short)[0]
    assert found["long"].token_ids == reference("multi-head", long)[0]


@pytest.mark.parametrize("missing", [-1, 1])
def test_one_image_token_too_few_or_too_many_is_an_error_of_that_row(missing):
    good, bad = requests(2, max_new_tokens=4)
    ids = list(bad.prompt_ids)
    place = ids.index(60)
    ids = ids[:place] + [60] * (TOKENS + missing) + ids[place + TOKENS :]
    bad = Request(id="bad", pixels=bad.pixels, prompt_ids=ids, max_new_tokens=4)
    found = {c.id: c for c in engine().generate([bad, good])}
    assert found["bad"].error_code == "bad_prompt"
    assert f"{TOKENS + missing} image tokens" in (found["bad"].error or "")
    assert found[good.id].token_ids == reference("multi-head", good)[0]


@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_the_tower_stops_at_the_layer_that_is_read(layer):
    model = copy.deepcopy(tiny("multi-head"))
    model.config.vision_feature_layer = layer
    pixels = torch.from_numpy(image(3))
    with torch.inference_mode():
        whole = model.get_image_features(pixel_values(pixels.numpy(), model)).pooler_output[0]
        made = Engine(model, slots=1, max_tokens=64)
        cut = made.llava.vision.features(pixels)[0]
    depth = len(made.llava.model.model.vision_tower.encoder.layers)
    assert depth == {-2: 2, -1: 3, 1: 1}[layer]
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_attention_answers_as_the_kernels_do(shape):
    given = requests(7)
    assert answers(engine(shape, attention="torch"), given) == expected(given, shape)
