"""A model's layers in their fused CPU form: what is exchanged, and what that takes in memory."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cpu import kernels
from tiny_llava import COMMON, random_llava, vision_config
from torch import nn
from transformers import LlamaConfig

from llava_batch.engine.kernels import cpu_build, cpu_layers, cpu_linear
from llava_batch.engine.kernels.cpu_decoder import FusedMLP
from llava_batch.engine.kernels.cpu_linear import PackedGated, PackedLinear, PanelGated, PanelLinear

WITH_WEIGHTS = (PackedLinear, PanelLinear, PanelGated)


@pytest.fixture(params=["in panels", "by oneDNN"])
def form(request, monkeypatch) -> str:
    """Both forms of a linear layer, whatever this machine would choose."""
    best = request.param == "in panels"
    monkeypatch.setattr(cpu_linear, "panels_are_best", lambda weight: best)
    return request.param


@pytest.fixture
def model(form):
    kernels(torch.float32)
    deep = LlamaConfig(**COMMON | {"num_hidden_layers": 8})
    return random_llava(vision_config(), deep).requires_grad_(False)


def linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if type(part) is nn.Linear]


def watch(monkeypatch, after) -> None:
    """Call `after` with every layer that holds a packed weight, once it is made."""

    def watched(self, *parts):
        plain[type(self)](self, *parts)
        after(self)

    plain = {kind: kind.__init__ for kind in WITH_WEIGHTS}
    for kind in WITH_WEIGHTS:
        monkeypatch.setattr(kind, "__init__", watched)


def memory(layer) -> int:
    """Whose it is: the same of layers on the same packed weight."""
    if isinstance(layer, PackedLinear):
        return id(layer.packed)
    return layer.weight.panels.untyped_storage().data_ptr()


def test_every_weight_is_packed_once(monkeypatch, model):
    made: list[nn.Module] = []
    watch(monkeypatch, made.append)
    cpu_layers.fuse(model)
    kept = [part for part in model.modules() if isinstance(part, WITH_WEIGHTS)]
    assert {id(part) for part in made} <= {id(part) for part in kept}
    # Parts of another one's panels have no memory of their own.
    assert len(made) == len({memory(part) for part in made}) == len({memory(part) for part in kept})
    assert not linears(model)


def test_an_unpacked_weight_is_let_go_before_the_next_layer_is_packed(monkeypatch, model):
    patches = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    unpacked = [
        (weakref.ref(part.weight), part.weight.nbytes) for part in (*linears(model), *patches)
    ]
    del patches
    total = sum(size for _, size in unpacked)
    largest = max(
        sum(part.weight.nbytes for part in linears(layer))
        for layer in model.model.language_model.layers
    )
    packed, peaks = [], []

    def look(layer: nn.Module) -> None:
        kept = layer.packed if isinstance(layer, PackedLinear) else layer.weight.panels
        packed.append((weakref.ref(layer), kept.nbytes))
        alive = [size for part, size in [*unpacked, *packed] if part() is not None]
        peaks.append(sum(alive))

    watch(monkeypatch, look)
    cpu_layers.fuse(model)
    assert not [size for part, size in unpacked if part() is not None]
    # Panels hold zeros behind a weight's last column.
    assert max(peaks) <= max(total, sum(size for _, size in packed)) + largest


def test_a_module_is_fused_whole_or_its_linears_one_by_one(model):
    model.model.language_model.layers[3].mlp.config.hidden_act = "gelu"  # one config for all
    cpu_layers.fuse(model)
    mlps = [layer.mlp for layer in model.model.language_model.layers]
    assert not any(isinstance(mlp, FusedMLP) for mlp in mlps)
    assert all(isinstance(mlp.gate_proj, (PanelLinear, PackedLinear)) for mlp in mlps)


DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""How far a product may be from torch's in float32, of entries of about one."""


def layers(
    columns: int, inner: int, dtype: torch.dtype, *, bias: bool, count: int
) -> list[nn.Linear]:
    made = [nn.Linear(inner, columns, bias=bias) for _ in range(count)]
    return [layer.to(dtype).requires_grad_(False) for layer in made]


SIZES = st.tuples(st.integers(1, 200), st.integers(1, 150), st.integers(1, 200))


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, bias=st.booleans(), dtype=st.sampled_from([*DTYPES]), seed=st.integers(0, 99))
def test_products_in_panels_equal_torch(sizes, bias, dtype, seed):
    kernels(dtype)
    rows, columns, inner = sizes
    inner += inner % 2
    torch.manual_seed(seed)
    x, residual = torch.randn(rows, inner).to(dtype), torch.randn(rows, columns).to(dtype)
    one, other = layers(columns, inner, dtype, bias=bias, count=2)
    close = {"rtol": DTYPES[dtype], "atol": DTYPES[dtype]}
    in_panels, plain = PanelLinear(one), one(x)
    torch.testing.assert_close(in_panels(x), plain, **close)
    torch.testing.assert_close(in_panels(x, residual=residual), plain + residual, **close)
    quick = plain * torch.sigmoid(1.702 * plain)
    torch.testing.assert_close(in_panels(x, "quick_gelu"), quick, **close)
    torch.testing.assert_close(PanelLinear(one, other)(x), torch.cat([plain, other(x)], 1), **close)
    expected = nn.functional.silu(plain) * other(x)
    torch.testing.assert_close(PanelGated(one, other)(x), expected, **close)


@pytest.mark.parametrize("dtype", [*DTYPES])
@pytest.mark.parametrize("bias", [True, False])
def test_panels_that_are_split_have_the_bits_of_layers_by_themselves(monkeypatch, dtype, bias):
    kernels(dtype)
    monkeypatch.setattr(cpu_linear, "panels_are_best", lambda weight: True)
    (query,) = layers(128, 64, dtype, bias=bias, count=1)
    key, value = layers(48, 64, dtype, bias=bias, count=2)
    x = torch.randn(3, 64).to(dtype)
    every, first, others = cpu_linear.in_two(query, key, value)
    assert every is not None
    assert torch.equal(first(x), PanelLinear(query)(x))
    assert torch.equal(others(x), PanelLinear(key, value)(x))
    assert torch.equal(torch.cat([first(x), others(x)], 1), every(x))
    assert memory(every) == memory(first) == memory(others)
    assert cpu_linear.in_two(key, query, value)[0] is None, "a key's columns are no whole panel"


def test_a_bias_of_one_of_two_layers_is_added():
    kernels(torch.float32)
    (gate,) = layers(40, 16, torch.float32, bias=True, count=1)
    (up,) = layers(40, 16, torch.float32, bias=False, count=1)
    x = torch.randn(3, 16)
    expected = nn.functional.silu(gate(x)) * up(x)
    for made in (PanelGated, PackedGated):
        torch.testing.assert_close(made(gate, up)(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(PanelLinear(gate, up)(x), torch.cat([gate(x), up(x)], 1))


@pytest.mark.parametrize("dtype", [*DTYPES])
def test_an_undefined_entry_stays_in_its_row(dtype):
    kernels(dtype)
    gate, up = layers(70, 32, dtype, bias=False, count=2)
    x = torch.randn(9, 32).to(dtype)
    x[4, 7] = float("nan")
    for made in (PanelLinear(gate)(x), PanelLinear(gate)(x, "quick_gelu"), PanelGated(gate, up)(x)):
        assert made.isnan().any(1).tolist() == [row == 4 for row in range(9)]
        assert made[4].isnan().all()


def test_a_residual_of_another_kind_or_an_input_of_another_dtype_is_refused():
    kernels(torch.bfloat16)
    (layer,) = layers(40, 16, torch.bfloat16, bias=False, count=1)
    made, x = PanelLinear(layer), torch.randn(3, 16).bfloat16()
    for residual in (torch.zeros(3, 40), torch.zeros(2, 40).bfloat16()):
        with pytest.raises(ValueError, match="a residual of"):
            made(x, residual=residual)
    with pytest.raises(ValueError, match=r"by a weight of torch\.bfloat16"):
        made(x.float())
    wide = torch.randn(3, 80).bfloat16()
    assert torch.equal(made(x, residual=wide[:, ::2]), made(x, residual=wide[:, ::2].contiguous()))


def test_bfloat16_goes_to_onednn_where_the_processor_multiplies_matrices_or_an_entry_has_no_neighbour(
    monkeypatch,
):
    monkeypatch.setattr(cpu_build, "cpu_flags", lambda: frozenset({"avx512f"}))
    best = cpu_linear.panels_are_best
    assert best(torch.zeros(4, 6, dtype=torch.bfloat16))
    assert not best(torch.zeros(4, 7, dtype=torch.bfloat16))
    monkeypatch.setattr(cpu_build, "cpu_flags", lambda: frozenset({"avx512f", "amx_bf16"}))
    assert not best(torch.zeros(4, 6, dtype=torch.bfloat16))
    assert best(torch.zeros(4, 7))


def forms(x: torch.Tensor, factor: torch.Tensor):
    """All that a layer of 4,096 entries can be asked for, as functions of the rows that are asked."""
    dtype = x.dtype
    one, other = layers(64, 4096, dtype, bias=True, count=2)
    packed, in_panels = PackedLinear(one), PanelLinear(one)
    wide = PanelLinear(*layers(100, 4096, dtype, bias=True, count=1))
    both = [PackedGated(one, other), PanelGated(one, other)]
    return (
        lambda rows: packed(x[rows]),
        lambda rows: packed(x[rows], "quick_gelu", factor[rows]),
        lambda rows: wide(x[rows]),
        lambda rows: packed.product(x[rows], "gelu", "none"),
        lambda rows: in_panels(x[rows]),
        lambda rows: in_panels(x[rows], "quick_gelu", factor[rows]),
        *(lambda rows, made=made: made(x[rows]) for made in both),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_a_product_has_the_same_bits_alone_and_among_others(dtype):
    kernels(dtype)
    x, factor = torch.randn(170, 4096).to(dtype), torch.randn(170, 64).to(dtype)
    for form in forms(x, factor):
        every = form(slice(0, 170))
        for size in (1, 2, 3, 4, 5, 7, 13, 16, 64, 65, 100):
            assert torch.equal(form(slice(0, size)), every[:size])
        assert torch.equal(form(slice(9, 10)), every[9:10])
