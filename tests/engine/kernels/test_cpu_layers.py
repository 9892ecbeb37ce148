"""A model's layers in their fused CPU form: what is exchanged, and what that takes in memory."""

import weakref

import pytest
import torch
from test_cpu import kernels
from tiny_llava import COMMON, random_llava, vision_config
from torch import nn
from transformers import LlamaConfig

from llava_batch.engine.kernels import cpu_layers
from llava_batch.engine.kernels.cpu_layers import FusedMLP
from llava_batch.engine.kernels.cpu_linear import PackedLinear


@pytest.fixture
def model():
    kernels(torch.float32)
    deep = LlamaConfig(**COMMON | {"num_hidden_layers": 8})
    return random_llava(vision_config(), deep).requires_grad_(False)


def linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if type(part) is nn.Linear]


def watch(monkeypatch, after) -> None:
    """Call `after` with every packed layer, once it is made."""
    whole = PackedLinear.__init__

    def watched(self, *parts):
        whole(self, *parts)
        after(self)

    monkeypatch.setattr(PackedLinear, "__init__", watched)


def test_every_weight_is_packed_once(monkeypatch, model):
    made: list[PackedLinear] = []
    watch(monkeypatch, made.append)
    cpu_layers.fuse(model)
    kept = [part for part in model.modules() if isinstance(part, PackedLinear)]
    assert len(made) == len(kept)
    assert {id(part) for part in made} == {id(part) for part in kept}
    assert not linears(model)


def test_an_unpacked_weight_is_let_go_before_the_next_layer_is_packed(monkeypatch, model):
    unpacked = [(weakref.ref(part.weight), part.weight.nbytes) for part in linears(model)]
    total = sum(size for _, size in unpacked)
    largest = max(
        sum(part.weight.nbytes for part in linears(layer))
        for layer in model.model.language_model.layers
    )
    packed, peaks = [], []

    def look(layer: PackedLinear) -> None:
        packed.append((weakref.ref(layer), layer.packed.nbytes))
        alive = [size for part, size in [*unpacked, *packed] if part() is not None]
        peaks.append(sum(alive))

    watch(monkeypatch, look)
    cpu_layers.fuse(model)
    assert not [size for part, size in unpacked if part() is not None]
    assert max(peaks) <= total + largest


def test_a_module_is_fused_whole_or_its_linears_one_by_one(model):
    model.model.language_model.layers[3].mlp.config.hidden_act = "gelu"  # one config for all
    cpu_layers.fuse(model)
    mlps = [layer.mlp for layer in model.model.language_model.layers]
    assert not any(isinstance(mlp, FusedMLP) for mlp in mlps)
    assert all(isinstance(mlp.gate_proj, PackedLinear) for mlp in mlps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_a_product_has_the_same_bits_alone_and_among_others(dtype):
    kernels(dtype)
    x, factor = torch.randn(70, 4096).to(dtype), torch.randn(70, 64).to(dtype)
    layer = PackedLinear(nn.Linear(4096, 64).to(dtype).requires_grad_(False))
    for form in (
        lambda rows: layer(x[rows]),
        lambda rows: layer(x[rows], "swish"),
        lambda rows: layer(x[rows], "gelu", "none"),
        lambda rows: layer.times(x[rows], factor[rows]),
    ):
        every = form(slice(0, 70))
        for size in (1, 2, 3, 16, 64):
            assert torch.equal(form(slice(0, size)), every[:size])
        assert torch.equal(form(slice(9, 10)), every[9:10])
