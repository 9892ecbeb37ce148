"""The K/V cache: slots allocated once, behind transformers' Cache interface.

Legend: S slots, L tokens a slot can hold, H K/V heads, D head size. A slot is left-aligned: the token at position p lies at index p, so that a
row's window is `[0, position]` and stale tokens behind it are overwritten before they are seen.
"""

import math
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from llava_batch.engine.passes import Pass, Rows


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, each `[S, H, L, D]`."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.rows: Pass = Rows(slots=(0,), past=(0,), new=(0,))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the slots are allocated with the engine."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the pass's keys and values to their slots; return those that its rows see."""
        return self.rows.store(self.keys, self.values, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The engine's attention builds no mask from these."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Zero: every row has its own length, and positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """L."""
        return int(self.keys.shape[2])

    def get_max_cache_shape(self) -> int:
        """L, by the name that older transformers use."""
        return int(self.keys.shape[2])


class SlotCache(Cache):  # type: ignore[misc]
    """All layers' slots.

    Pages are touched when a slot is first written, so that on CPU an unused slot costs nothing.
    """

    def __init__(
        self,
        config: Any,
        *,
        num_slots: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        token_major: bool = False,
    ) -> None:
        """Slots for a language model's config.

        token_major: lie in memory as `[S, L, H, D]`, as the packed path's kernels read it.
        """
        outer, inner = kv_heads(config), max_tokens
        if token_major:
            outer, inner = inner, outer
        shape = (num_slots, outer, inner, head_dim(config))

        def slots() -> torch.Tensor:
            # Zeros, not empty: masked positions are multiplied by zero, and zero times NaN is NaN.
            made = torch.zeros(shape, dtype=dtype, device=device)
            return made.transpose(1, 2) if token_major else made

        num_layers = config.num_hidden_layers
        self.num_slots, self.max_tokens = num_slots, max_tokens
        self.slot_layers = [SlotLayer(slots(), slots()) for _ in range(num_layers)]
        super().__init__(layers=list(self.slot_layers))
        self.rows: Any = self.slot_layers[0].rows  # the fused modules only ever see `Rows`
        self.num_bytes = num_layers * 2 * math.prod(shape) * dtype.itemsize

    def select(self, rows: Pass) -> None:
        """Work on these rows from now on."""
        self.rows = rows
        for layer in self.slot_layers:
            layer.rows = rows

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Fork: the first `num_tokens` of slot `source` are then also in slot `target`."""
        for layer in self.slot_layers:
            layer.keys[target, :, :num_tokens] = layer.keys[source, :, :num_tokens]
            layer.values[target, :, :num_tokens] = layer.values[source, :, :num_tokens]

    def clear(self, slot: int) -> None:
        """Set everything that a slot holds to zero."""
        for layer in self.slot_layers:
            layer.keys[slot] = 0
            layer.values[slot] = 0


def slot_bytes(config: Any, max_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one slot for a language model's config: 2 (K and V) · layers · heads · D · L."""
    size: int = (
        2
        * config.num_hidden_layers
        * kv_heads(config)
        * head_dim(config)
        * max_tokens
        * (dtype.itemsize)
    )
    return size


def kv_heads(config: Any) -> int:
    """K/V heads of a language model's config."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads


def head_dim(config: Any) -> int:
    """Head size of a language model's config."""
    given: int | None = getattr(config, "head_dim", None)
    return given or int(config.hidden_size // config.num_attention_heads)
