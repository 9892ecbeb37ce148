"""The fast CPU form of a model's layers: the same weights, laid out for the kernels, and fused kernels.

What the kernels know is exchanged: decoder layers whole (`cpu_decoder`), of the tower and the projector the
modules inside, and only where their class is one of those named here, so that any other model still runs,
on transformers' own modules with each linear layer by itself. What a module computes is what transformers
computes; in float32 the tests hold every token against it.
Legend: N images, T their patches, C hidden size.
"""

from typing import Any

import torch
from torch import nn

from llava_batch.engine.kernels import cpu
from llava_batch.engine.kernels.contract import Kernels
from llava_batch.engine.kernels.cpu_decoder import (
    DECODERS,
    FusedAttention,
    FusedLayer,
    FusedMLP,
    FusedNorm,
    LastAttention,
    is_last,
)
from llava_batch.engine.kernels.cpu_linear import PackedLinear, linear
from llava_batch.engine.kernels.interface import HARMLESS, refuse_unknown
from llava_batch.engine.kernels.norms import NORMS
from llava_batch.engine.passes import Rows

MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP"}
GELU_MLPS = {"CLIPMLP", "SiglipMLP"}

GELUS = {"GELUActivation": "none", "GELUTanh": "tanh"}
"""oneDNN's names of those activations. Within a product each entry is computed alike; torch's own takes
one way for whole vectors and another for what is left of a thread's share."""


class FusedClipAttention(nn.Module):  # type: ignore[misc]
    """The tower's attention, over all of an image's patches."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = linear(attention.out_proj)
        self.scaling, self.head_dim = attention.scale, attention.head_dim

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **more: object,
    ) -> tuple[torch.Tensor, None]:
        """`[N, T, C]` -> `[N, T, C]`."""
        refuse_unknown(self, attention_mask, more.keys() - HARMLESS)
        batch, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, length, 3, -1, self.head_dim)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        every = Rows(slots=tuple(range(batch)), past=(0,) * batch, new=(length,) * batch)
        mixed = cpu.attend(
            query,
            key.transpose(1, 2),
            value.transpose(1, 2),
            every,
            scaling=self.scaling,
            causal=False,
        )
        return self.out(mixed.view(batch, length, width)), None


class FusedClipMLP(nn.Module):  # type: ignore[misc]
    """The tower's feed-forward with quick-GELU within its first product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(mlp.fc1), linear(mlp.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., C]`."""
        return self.fc2(self.fc1(x, "quick_gelu"))


class FusedGelu(nn.Module):  # type: ignore[misc]
    """Two linear layers and a gelu between them: LLaVA's projector, SigLIP's feed-forward."""

    def __init__(self, first: nn.Linear, gelu: nn.Module, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = PackedLinear(first), linear(second)
        self.form = GELUS[type(gelu).__name__]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., C]`."""
        return self.second(self.first.product(x, "gelu", self.form))


def fuse(module: Any) -> None:
    """Exchange what the kernels know, in a LlavaForConditionalGeneration on CPU.

    Each weight is packed once, and let go before the next module's: memory never holds the model twice.
    """
    for name in [name for name, _ in module.named_children()]:
        child = getattr(module, name)
        fused = _fused(child)
        if fused is None:
            fuse(child)
        else:
            setattr(module, name, fused)
        del child


def _fused(module: nn.Module) -> nn.Module | None:
    """The fused form of a module, or None to keep it and look into it."""
    kind: Any = type(module).__name__
    part: Any = module
    if kind in NORMS:
        return FusedNorm(part)
    if kind in MLPS and part.config.hidden_act == "silu":
        return FusedMLP(part)
    if kind in DECODERS and part.self_attn.head_dim % 16 == 0:
        return _decoder_layer(part)
    if kind == "CLIPAttention" and part.head_dim % 16 == 0:
        return FusedClipAttention(part)
    if kind == "CLIPMLP" and part.config.hidden_act == "quick_gelu":
        return FusedClipMLP(part)
    if kind == "LlavaMultiModalProjector" and type(part.act).__name__ in GELUS:
        return FusedGelu(part.linear_1, part.act, part.linear_2)
    if kind in GELU_MLPS and type(part.activation_fn).__name__ in GELUS:
        return FusedGelu(part.fc1, part.activation_fn, part.fc2)
    if type(module) is nn.Linear:
        return linear(module)
    return None


def _decoder_layer(layer: Any) -> FusedLayer:
    attention = (LastAttention if is_last(layer) else FusedAttention)(layer.self_attn)
    layer.self_attn = None  # its weights are packed, and needed no more
    fuse(layer)
    return FusedLayer(layer, attention)


KERNELS = Kernels(
    name="native",
    packed=False,
    prefill=cpu.unfused,
    decode=cpu.unfused,
    best_token=cpu.best_token,
    draw=cpu.draw,
    prepare=fuse,
)
