"""The fast CPU form of a model's layers: the same weights, laid out for the kernels, and fused kernels.

What the kernels know is exchanged: the language model's layers (`cpu_decoder`), the tower's and the projector
(`cpu_tower`), and only where their class is one of those named here, so that any other model still runs,
on transformers' own modules with each linear layer by itself. What a module computes is what transformers
computes; in float32 the tests hold every token against it.
"""

from typing import Any

from torch import nn

from llava_batch.engine.kernels import cpu
from llava_batch.engine.kernels.contract import Kernels
from llava_batch.engine.kernels.cpu_decoder import (
    DECODERS,
    STACKS,
    FusedAttention,
    FusedLayer,
    FusedMLP,
    FusedNorm,
    FusedStack,
    LastAttention,
    is_last,
)
from llava_batch.engine.kernels.cpu_linear import linear
from llava_batch.engine.kernels.cpu_tower import (
    GELUS,
    FusedClipAttention,
    FusedClipEmbeddings,
    FusedClipEncoder,
    FusedClipLayer,
    FusedClipMLP,
    FusedGelu,
    whole_layer,
)
from llava_batch.engine.kernels.norms import NORMS

MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP"}
GELU_MLPS = {"CLIPMLP", "SiglipMLP"}


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
    if kind in STACKS:
        return _stack(part)
    if kind == "CLIPVisionEmbeddings" and part.image_size % part.patch_size == 0:
        return FusedClipEmbeddings(part)
    if kind == "CLIPEncoder":
        return _clip_encoder(part)
    if kind == "CLIPEncoderLayer":
        return _clip_layer(part)
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


def _stack(model: Any) -> FusedStack | None:
    """None where a layer is not fused, after which nothing of the model is left to be exchanged."""
    fuse(model)
    fused = all(isinstance(layer, FusedLayer) for layer in model.layers)
    return FusedStack(model) if fused else None


def _clip_encoder(encoder: Any) -> FusedClipEncoder | None:
    """None where a layer is not fused, after which nothing of the encoder is left to be exchanged."""
    fuse(encoder)
    fused = all(isinstance(layer, FusedClipLayer) for layer in encoder.layers)
    return FusedClipEncoder(encoder) if fused else None


def _clip_layer(layer: Any) -> FusedClipLayer | None:
    """None where one call does not know all of it, after which nothing of it is left to be exchanged."""
    fuse(layer)
    whole = whole_layer(layer)
    return None if whole is None else FusedClipLayer(layer, whole)


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
