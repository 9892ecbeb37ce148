"""CLIP's layers in one call: what transformers' layers compute, with the bits of their parts, whoever is beside them."""

import copy

import pytest
import torch
from test_cpu import kernels
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_batch.engine.kernels import cpu, cpu_layers, cpu_linear
from llava_batch.engine.kernels.cpu_tower import (
    FusedClipAttention,
    FusedClipEmbeddings,
    FusedClipEncoder,
    FusedClipLayer,
    FusedClipMLP,
)
from llava_batch.engine.model.vision import last_of_clip

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""How far a layer may be from the same in double precision, as a part of the answer."""


@pytest.fixture(autouse=True)
def in_panels(monkeypatch) -> None:
    """Whatever this machine would choose."""
    monkeypatch.setattr(cpu_linear, "panels_are_best", lambda weight: True)


def tower(dtype: torch.dtype, **settings) -> CLIPVisionModel:
    """Of 26 patches an image, each weight and bias drawn."""
    kernels(dtype)
    common = {"hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 2}
    config = CLIPVisionConfig(
        **common | {"image_size": 20, "patch_size": 4, "num_hidden_layers": 3} | settings
    )
    torch.manual_seed(0)
    made = CLIPVisionModel(config).eval().requires_grad_(False)
    for name, weight in made.named_parameters():
        torch.nn.init.normal_(weight, std=0.2, mean="norm" in name and name.endswith("weight"))
    return made.to(dtype)


def fused(made: CLIPVisionModel) -> CLIPVisionModel:
    made = copy.deepcopy(made)
    cpu_layers.fuse(made)
    return made


def layers(made: CLIPVisionModel) -> list[torch.nn.Module]:
    return list(getattr(made, "vision_model", made).encoder.layers)


def whole(made: CLIPVisionModel) -> CLIPVisionModel:
    """What has the tower's parts, whichever way transformers wraps them."""
    return getattr(made, "vision_model", made)


def apart(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_layer_in_one_call_computes_what_transformers_does(dtype, count):
    theirs = tower(dtype)
    ours = layers(fused(theirs))
    x = torch.randn(count, 26, 64).to(dtype)
    for layer, plain in zip(ours, layers(theirs), strict=True):
        assert isinstance(layer, FusedClipLayer)
        exact = copy.deepcopy(plain).double()(x.double(), None)
        assert apart(layer(x), exact) < DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_has_the_bits_of_a_layers_parts_whoever_is_beside_it(dtype):
    theirs = tower(dtype)
    layer, plain = layers(fused(theirs))[0], layers(theirs)[0]
    attention, mlp = FusedClipAttention(plain.self_attn), FusedClipMLP(plain.mlp)
    x = torch.randn(3, 26, 64).to(dtype)
    given, found = x.clone(), layer(x)
    assert torch.equal(x, given)
    for image, its in zip(x.split(1), found.split(1), strict=True):
        assert torch.equal(layer(image), its)
        hidden = image + attention(cpu.layer_norm(image, layer.whole.before))[0]
        by_parts = hidden + mlp(cpu.layer_norm(hidden, layer.whole.behind))
        assert torch.equal(by_parts, its)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("are_best", [True, False])
def test_patches_and_positions_by_one_product_are_those_of_the_convolution(
    dtype, are_best, monkeypatch
):
    monkeypatch.setattr(cpu_linear, "panels_are_best", lambda weight: are_best)
    theirs = tower(dtype)
    ours = whole(fused(theirs)).embeddings
    assert isinstance(ours, FusedClipEmbeddings)
    pixels = torch.randn(3, 3, 20, 20).to(dtype)
    exact = copy.deepcopy(whole(theirs).embeddings).double()(pixels.double())
    found = ours(pixels)
    assert found.shape == (3, 26, 64)
    for place in (0, 1, 7, 25):
        assert apart(found[:, place], exact[:, place]) < DTYPES[dtype]
    for image, its in zip(pixels.split(1), found.split(1), strict=True):
        assert torch.equal(ours(image), its)


def test_pixels_of_another_size_are_refused():
    ours = whole(fused(tower(torch.float32))).embeddings
    with pytest.raises(ValueError, match=r"pixels are \[20, 24\], must be \[20, 20\]"):
        ours(torch.zeros(1, 3, 20, 24))
    with pytest.raises(ValueError, match="interpolate_pos_encoding is asked for"):
        ours(torch.zeros(1, 3, 20, 20), interpolate_pos_encoding=True)


def test_patches_that_leave_pixels_over_stay_transformers_own():
    theirs = tower(torch.float32, image_size=22)
    ours = fused(theirs)
    assert not isinstance(whole(ours).embeddings, FusedClipEmbeddings)
    pixels = torch.randn(1, 3, 22, 22)
    found, expected = (made(pixels).last_hidden_state for made in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_layers_in_few_calls_have_the_bits_of_each_by_itself(dtype, most, monkeypatch):
    made = tower(dtype)
    of_one = layers(fused(made))[0].whole.num_bytes
    monkeypatch.setattr("llava_batch.engine.kernels.cpu_whole.MOST_BYTES", most * of_one)
    ours = whole(fused(made))
    assert isinstance(ours.encoder, FusedClipEncoder)
    assert [len(call.layers) for call in ours.encoder.calls] == [[1, 1, 1], [2, 1], [3]][most - 1]
    pixels = torch.randn(2, 3, 20, 20).to(dtype)
    hidden = ours.pre_layrnorm(ours.embeddings(pixels))
    for layer in ours.encoder.layers:
        hidden = layer(hidden)
    assert torch.equal(last_of_clip(ours, pixels), hidden)
    assert torch.equal(ours(pixels).last_hidden_state, hidden)


def test_of_many_patches_each_layer_has_a_call_of_its_own(monkeypatch):
    ours = whole(fused(tower(torch.float32)))
    pixels = torch.randn(2, 3, 20, 20)
    together = last_of_clip(ours, pixels)
    monkeypatch.setattr("llava_batch.engine.kernels.cpu_tower.MOST_PATCHES", 51)
    monkeypatch.setattr(ours.encoder, "calls", None)
    assert torch.equal(last_of_clip(ours, pixels), together)


@pytest.mark.parametrize("was_asked_before", [False, True])
def test_hidden_states_of_every_layer_are_handed_out(was_asked_before):
    theirs = tower(torch.float32)
    pixels = torch.randn(2, 3, 20, 20)
    given = copy.deepcopy(theirs)
    if was_asked_before:
        given(pixels, output_hidden_states=True)
    ours = fused(given)(pixels, output_hidden_states=True).hidden_states
    asked = theirs(pixels, output_hidden_states=True).hidden_states
    assert len(ours) == len(asked) == 4
    for found, expected in zip(ours, asked, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"hidden_act": "gelu"}, {"num_attention_heads": 8}, {"hidden_act": "relu"}]
)
def test_a_layer_that_is_not_known_whole_is_computed_part_by_part(settings):
    theirs = tower(torch.float32, **settings)
    ours = fused(theirs)
    assert not any(isinstance(layer, FusedClipLayer) for layer in layers(ours))
    pixels = torch.randn(2, 3, 20, 20)
    found, expected = (made(pixels).last_hidden_state for made in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_by_onednn_a_layer_is_computed_part_by_part(monkeypatch):
    monkeypatch.setattr(cpu_linear, "panels_are_best", lambda weight: False)
    made = layers(fused(tower(torch.float32)))
    assert not any(isinstance(layer, FusedClipLayer) for layer in made)


def test_what_is_no_layers_input_is_refused():
    layer = layers(fused(tower(torch.bfloat16)))[0]
    for x in (torch.zeros(1, 26, 64), torch.zeros(1, 26, 62).bfloat16()):
        with pytest.raises(ValueError, match=r"by a weight of torch\.bfloat16 with 64"):
            layer(x)
    with pytest.raises(ValueError, match="FusedClipLayer asks its attention for attention_mask"):
        layer(torch.zeros(1, 26, 64).bfloat16(), attention_mask=torch.zeros(1))
