"""Quantized products on a card that is not there: which of them wait for the device, as `quantize` has it.

bitsandbytes' own classes of weights cannot be made of fake tensors: its products are called as its layers do.
"""

from collections.abc import Callable, Iterator
from typing import Any

import fake_card
import pytest
import torch
from fake_card import Card, Fault
from test_fake_cuda import answer, ask, forks, small
from tiny_llava import vision_config

from llava_batch.engine import Engine

pytestmark = pytest.mark.skipif(fake_card.why_not() is not None, reason=str(fake_card.why_not()))


@pytest.fixture
def card(monkeypatch) -> Iterator[Card]:
    with Card().at_work(monkeypatch) as made:
        yield made


class FourBits(torch.nn.Module):
    """What bitsandbytes' Linear4bit calls."""

    def __init__(self, linear: Any, kind: str) -> None:
        super().__init__()
        self.bnb = pytest.importorskip("bitsandbytes")
        self.stored, self.state = self.bnb.functional.quantize_4bit(
            linear.weight.data, quant_type=kind
        )
        self.bias = linear.bias

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.bnb.matmul_4bit(given, self.stored.t(), self.state, bias=self.bias)


class EightBits(torch.nn.Module):
    """What its Linear8bitLt calls, with the threshold of transformers' config."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.bnb = pytest.importorskip("bitsandbytes")
        self.stored, scales, _ = self.bnb.functional.int8_vectorwise_quant(
            linear.weight.data.half()
        )
        self.state = self.bnb.MatmulLtState()
        self.state.CB, self.state.SCB = self.stored, scales
        self.state.threshold, self.state.has_fp16_weights = 6.0, False
        self.bias = linear.bias

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.bnb.matmul(given, self.stored, bias=self.bias, state=self.state)


def by_torchao(linear: Any) -> Any:
    """Its eight bits, as `int8wo` has them."""
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(linear, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    assert type(linear.weight.data) is not fake_card.fake_tensors.FakeTensor
    return linear


KINDS: dict[str, Callable[[Any], Any]] = {
    "nf4": lambda linear: FourBits(linear, "nf4"),
    "fp4": lambda linear: FourBits(linear, "fp4"),
    "int8wo": by_torchao,
    "int8": EightBits,
}


def quantized(card: Card, monkeypatch: pytest.MonkeyPatch, kind: str, **options: Any) -> Engine:
    """An engine whose decoder's linear layers are of one kind."""
    whole = Engine.__init__

    def made(self: Engine, model: Any, **given: Any) -> None:
        for module in model.model.language_model.layers.modules():
            for name, linear in list(module.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(module, name, KINDS[kind](linear))
        whole(self, model, **given)

    monkeypatch.setattr(Engine, "__init__", made)
    return card.engine(vision_config(), small(), **options)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8wo"])
def test_a_captured_step_holds_quantized_products(card, monkeypatch, kind) -> None:
    made = quantized(card, monkeypatch, kind, attention="sdpa")
    answer(made, [ask("a"), *forks(2)])
    assert sum(graph.num_replays for graph in card.graphs) > 0


def test_int8_waits_for_its_outliers_as_it_is_said_to(card, monkeypatch) -> None:
    made = quantized(card, monkeypatch, "int8", attention="sdpa", graphs=False)
    with pytest.raises(Fault, match="the host waits for the device"):
        answer(made, [ask("a")])
