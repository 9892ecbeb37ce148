"""The last decoder layer on CPU: keys and values of every token, all else of those that are scored alone.

Of a prompt only the last place is scored, or the few of a choice; nothing reads what the last layer makes of
the others but its keys and values. One place a row takes the decode step's kernels, several the prefill's: a
query's bits are the same in both.
Legend: B rows, Q left-padded length, K the most places that a row has scored, C hidden size, Hq and H query and
K/V heads, D head size.
"""

from typing import Any

import torch
from torch import nn

from llava_batch.engine.cache import SlotCache
from llava_batch.engine.kernels import cpu
from llava_batch.engine.kernels.cpu_linear import PackedLinear
from llava_batch.engine.kernels.interface import HARMLESS, KNOWN, narrowed, refuse_unknown

DECODERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}


class LastAttention(nn.Module):  # type: ignore[misc]
    """Attention over slots of the places that are scored."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.query = PackedLinear(attention.q_proj)
        self.keys_values = PackedLinear(attention.k_proj, attention.v_proj)
        self.out = PackedLinear(attention.o_proj)
        self.layer_idx, self.head_dim = attention.layer_idx, attention.head_dim
        self.scaling = attention.scaling
        self.num_heads = attention.q_proj.out_features // attention.head_dim
        self.window = window_of(attention)

    def forward(
        self, x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor], cache: SlotCache
    ) -> torch.Tensor:
        """`[B, Q, C]` -> `[B, K, C]`; the K/V of all Q are in their slots afterwards. turns: cosine and sine."""
        layer = cache.slot_layers[self.layer_idx]
        cpu.rope_store(self.keys_values(x), *turns, layer.keys, layer.values, cache.rows, 0)
        rows = cache.rows.last
        query = self.query(last(x, rows.length))
        cosine, sine = (last(turn, rows.length) for turn in turns)
        cpu.rotate(query, cosine, sine, rows)
        query = query.view(*query.shape[:2], self.num_heads, self.head_dim)
        window = narrowed(self.window, rows.room(cache.slot_tokens))
        mixed = cpu.attend(
            query, layer.keys, layer.values, rows, scaling=self.scaling, window=window
        )
        return self.out(mixed.flatten(2))


class LastLayer(nn.Module):  # type: ignore[misc]
    """A decoder layer of those in DECODERS, whose other modules are fused already."""

    def __init__(self, layer: Any, attention: LastAttention) -> None:
        super().__init__()
        self.attention = attention
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        past_key_values: SlotCache,
        attention_mask: torch.Tensor | None = None,
        **more: object,
    ) -> torch.Tensor:
        """`[B, Q, C]` -> `[B, K, C]`."""
        refuse_unknown(self, attention_mask, more.keys() - HARMLESS - KNOWN)
        mixed = self.attention(
            self.input_layernorm(hidden_states), position_embeddings, past_key_values
        )
        hidden = last(hidden_states, mixed.shape[1]) + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


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
