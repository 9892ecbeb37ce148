"""Decoder layers of the fast CPU form: each product with what follows it, attention over slots; those of which all is
known and on panels, in one call together.

Of a prompt only the last place is scored, or the few of a choice; nothing reads what the last layer makes of
the others but its keys and values, so that it computes no more (`LastAttention`, and all behind it). One place
a row takes the decode step's kernels, several the prefill's: a query's bits are the same in both.
Legend: B rows, Q left-padded length, K the most places that a row has scored, C hidden size, Hq and H query and
K/V heads, D head size.
"""

from itertools import islice, takewhile
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from llava_batch.engine.cache import SlotCache
from llava_batch.engine.kernels import cpu, cpu_whole
from llava_batch.engine.kernels.cpu_linear import PanelGated, PanelLinear, gated, in_two, linear
from llava_batch.engine.kernels.interface import HARMLESS, KNOWN, narrowed, refuse_unknown

DECODERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
STACKS = {"LlamaModel", "MistralModel", "Qwen2Model"}
BY_PLACE = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings that turn a place alike in every pass, however long its rows are."""

Turns = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of the rotation, `[B, Q, D]` each."""


class FusedNorm(nn.Module):  # type: ignore[misc]
    """RMSNorm in one pass."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = cpu.Norm(norm.weight.detach(), norm.variance_epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., C]`."""
        return cpu.rms_norm(x, *self.norm)


class FusedMLP(nn.Module):  # type: ignore[misc]
    """SiLU and the product of gate and up within the products that make them."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gated, self.down = gated(mlp.gate_proj, mlp.up_proj), linear(mlp.down_proj)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """`[..., C]` -> `[..., C]`, the residual `[..., C]` added."""
        return self.down(self.gated(x), residual=residual)


class FusedAttention(nn.Module):  # type: ignore[misc]
    """Attention over slots: one product for q, k and v, rotation and cache write in one pass."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = linear(attention.o_proj)
        self.shape = Shape(attention)

    def forward(
        self, x: torch.Tensor, turns: Turns, cache: SlotCache, residual: torch.Tensor
    ) -> torch.Tensor:
        """`[B, Q, C]` -> `[B, Q, C]`, the residual added; K/V of the pass are in their slots afterwards."""
        layer, rows, shape = cache.slot_layers[self.shape.layer], cache.rows, self.shape
        qkv = self.qkv(x)
        cpu.rope_store(qkv, *turns, layer.keys, layer.values, rows, shape.num_heads)
        query = qkv.unflatten(-1, (-1, shape.head_dim))[:, :, : shape.num_heads]
        return self.out(shape.attend(query, cache, rows), residual=residual)


class LastAttention(nn.Module):  # type: ignore[misc]
    """Attention over slots of the places that are scored; keys and values of all."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv, self.query, self.keys_values = in_two(*projections)
        self.out = linear(attention.o_proj)
        self.shape = Shape(attention)

    def forward(
        self, x: torch.Tensor, turns: Turns, cache: SlotCache, residual: torch.Tensor
    ) -> torch.Tensor:
        """`[B, Q, C]` -> `[B, K, C]`, the residual's last K added; the K/V of all Q are in their slots afterwards."""
        layer, rows, shape = cache.slot_layers[self.shape.layer], cache.rows.last, self.shape
        cpu.rope_store(self.keys_values(x), *turns, layer.keys, layer.values, cache.rows, 0)
        query = self.query(last(x, rows.length))
        cosine, sine = (last(turn, rows.length) for turn in turns)
        cpu.rotate(query, cosine, sine, rows)
        query = query.unflatten(-1, (shape.num_heads, shape.head_dim))
        return self.out(shape.attend(query, cache, rows), residual=last(residual, rows.length))


class Shape:
    """What an attention layer is beside its weights."""

    def __init__(self, attention: Any) -> None:
        self.layer, self.head_dim = attention.layer_idx, attention.head_dim
        self.scaling = attention.scaling
        self.num_heads = attention.q_proj.out_features // attention.head_dim
        self.window = window_of(attention)

    def attend(self, query: torch.Tensor, cache: SlotCache, rows: Any) -> torch.Tensor:
        """`[B, Q, Hq, D]` -> `[B, Q, Hq D]` over the layer's slots."""
        layer = cache.slot_layers[self.layer]
        window = narrowed(self.window, rows.room(cache.slot_tokens))
        return cpu.attend(
            query, layer.keys, layer.values, rows, scaling=self.scaling, window=window
        ).flatten(2)


class FusedLayer(nn.Module):  # type: ignore[misc]
    """A decoder layer of those in DECODERS, whose norms, and feed-forward where it is known, are fused already."""

    def __init__(self, layer: Any, attention: FusedAttention | LastAttention) -> None:
        super().__init__()
        self.attention = attention
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp

    @property
    def whole(self) -> cpu_whole.Layer | None:
        """What one call computes all places of the layer from; None where it has to be computed part by part."""
        attention, mlp = self.attention, self.mlp
        before, behind = self.input_layernorm, self.post_attention_layernorm
        norms = isinstance(before, FusedNorm) and isinstance(behind, FusedNorm)
        if not (norms and isinstance(mlp, FusedMLP)):
            return None
        products = (attention.qkv, attention.out, mlp.gated, mlp.down)
        panels = [part.weight for part in products if isinstance(part, (PanelLinear, PanelGated))]
        if len(panels) < len(products):
            return None
        qkv, out, both, down = panels
        shape = attention.shape
        made = cpu_whole.Layer(
            *(before.norm, qkv, out, behind.norm, both, down),
            *(shape.num_heads, shape.scaling, shape.window),
        )
        return made if made.fits else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Turns,
        past_key_values: SlotCache,
        attention_mask: torch.Tensor | None = None,
        **more: object,
    ) -> torch.Tensor:
        """`[B, Q, C]` -> `[B, Q, C]`, of the last layer `[B, K, C]`."""
        refuse_unknown(self, attention_mask, more.keys() - HARMLESS - KNOWN)
        normed = self.input_layernorm(hidden_states)
        hidden = self.attention(normed, position_embeddings, past_key_values, hidden_states)
        normed = self.post_attention_layernorm(hidden)
        if isinstance(self.mlp, FusedMLP):
            return self.mlp(normed, hidden)
        return hidden + self.mlp(normed)


class FusedStack(nn.Module):  # type: ignore[misc]
    """A language model of those in STACKS, whose layers are all fused: as many of the first as can be in a call together,
    then the others, then the norm. The last is in the call where all places are scored, as in a decode step. What else
    transformers' own does before them (masks, caches) nothing here asks for, and token embeddings are the engine's to keep.

    What is computed in one call is not called part by part: hooks see nothing there.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers, self.norm = model.layers, model.norm
        self.rotation = Rotation(model.rotary_emb)
        wholes = [*takewhile(lambda whole: whole is not None, (x.whole for x in model.layers))]
        before_last = wholes[: len(model.layers) - 1]
        self.calls, self.calls_for_all = (
            [cpu_whole.Layers(part) for part in cpu_whole.in_calls(layers)]
            for layers in (before_last, wholes)
        )
        """Of the first layers, which need not be called part by part: where some places are scored, and where all are."""

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: SlotCache,
        **more: object,
    ) -> BaseModelOutputWithPast:
        """`[B, Q, C]` and positions `[B, Q]` -> `[B, Q, C]`, or `[B, K, C]` where places are scored."""
        refuse_unknown(self, None, more.keys() - HARMLESS - KNOWN)
        cache, rows = past_key_values, past_key_values.rows
        turns = self.rotation(inputs_embeds, position_ids, cache.most_tokens)
        hidden = inputs_embeds
        slots = iter([(layer.keys, layer.values) for layer in cache.slot_layers])
        room = rows.room(cache.slot_tokens)
        are_all = rows.scored is None or rows.scored >= rows.length
        calls = self.calls_for_all if are_all else self.calls
        for call in calls:
            its = [*islice(slots, len(call.layers))]
            hidden = call(hidden, turns, its, rows, room=room)
        for layer in self.layers[sum(len(call.layers) for call in calls) :]:
            hidden = layer(hidden, turns, cache)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class Rotation(nn.Module):  # type: ignore[misc]
    """A model's rotary embedding, computed once for each place where it is BY_PLACE; in the dtype of the model."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.rotary = rotary
        self._of_places: Turns | None = None

    def forward(self, x: torch.Tensor, positions: torch.Tensor, most_tokens: int) -> Turns:
        """Positions `[B, Q]` below `most_tokens` -> cosine and sine, as the embedding has them beside x."""
        if self.rotary.rope_type not in BY_PLACE:
            return self.rotary(x, positions)  # type: ignore[no-any-return]
        of_places = self._of_places
        if of_places is None or len(of_places[0]) < most_tokens:
            cosine, sine = self.rotary(x, torch.arange(most_tokens)[None])
            of_places = self._of_places = cosine[0], sine[0]
        return of_places[0][positions], of_places[1][positions]


def is_last(layer: Any) -> bool:
    """Whether a decoder layer is its model's last."""
    attention = layer.self_attn
    return bool(attention.layer_idx + 1 == attention.config.num_hidden_layers)


def window_of(attention: Any) -> int | None:
    """The layer's sliding window. Qwen2 has it per layer, Mistral in its config, Llama not at all."""
    default = getattr(attention.config, "sliding_window", None)
    found: int | None = getattr(attention, "sliding_window", default)
    return found


def last(x: torch.Tensor, count: int) -> torch.Tensor:
    """The last `count` places of `[B, Q, ...]`, contiguous."""
    return x[:, x.shape[1] - count :].contiguous()
