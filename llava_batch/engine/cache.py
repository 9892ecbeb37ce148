"""The K/V cache: slots allocated once, behind transformers' Cache interface.

Legend: S slots, L tokens a slot can hold, H K/V heads, D head size. A row that needs more than L tokens has
as many adjacent slots as hold them, its width, which are then one slot to it (`views`). It is left-aligned:
the token at position p lies at index p, so that a row's window is `[0, position]` and stale tokens behind it
are overwritten before they are seen.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from llava_batch.engine import pages, views
from llava_batch.engine.passes import Pass, Rows

SPARE_TOKENS = 16
"""Behind the slots of a token-major layer, for what idle rows write; so many that every layer is aligned."""


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
    """All layers' slots. Their memory is taken at once, on CPU too: a worker that starts later must not find it free."""

    def __init__(
        self,
        config: Any,
        *,
        num_slots: int,
        slot_tokens: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        token_major: bool = False,
    ) -> None:
        """Slots of `slot_tokens` for a language model's config; no request needs more than `max_tokens`.

        token_major: lie in memory as `[S, L, H, D]`, as the packed path's kernels read it.
        """
        self.num_slots, self.slot_tokens, self.max_tokens = num_slots, slot_tokens, max_tokens
        num_layers, heads, dim = config.num_hidden_layers, kv_heads(config), head_dim(config)
        make = _token_major if token_major else _head_major
        shape = (num_slots, heads, slot_tokens, dim)
        longest = -(-max_tokens // slot_tokens) * slot_tokens
        made = make(2 * num_layers, shape, longest, dtype, device)
        pairs = zip(made[::2], made[1::2], strict=True)
        self.slot_layers = [SlotLayer(keys, values) for keys, values in pairs]
        super().__init__(layers=list(self.slot_layers))
        self.rows: Any = self.slot_layers[0].rows  # the fused modules only ever see `Rows`
        self.num_bytes = num_slots * slot_bytes(config, slot_tokens, dtype)
        self.most_tokens = min(max_tokens, num_slots * slot_tokens)
        """That a row can come to hold here."""

    def select(self, rows: Pass) -> None:
        """Work on these rows from now on."""
        self.rows = rows
        for layer in self.slot_layers:
            layer.rows = rows

    def copy(self, source: int, target: int, num_tokens: int, *, widths: tuple[int, int]) -> None:
        """Fork: the first `num_tokens` of the row at slot `source` are then also in that at `target`.

        widths: of the two, which share no slot.
        """
        for layer in self.slot_layers:
            for slots in (layer.keys, layer.values):
                taken = views.row(slots, source, widths[0])[:, :num_tokens]
                views.row(slots, target, widths[1])[:, :num_tokens] = taken

    def clear(self, slot: int, width: int) -> None:
        """Set everything that a row's slots hold to zero."""
        for layer in self.slot_layers:
            layer.keys[slot : slot + width] = 0
            layer.values[slot : slot + width] = 0


Shape = tuple[int, int, int, int]


def _head_major(
    count: int, shape: Shape, longest: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """`count` times slots of zeros, each `[S, H, L, D]` in memory.

    Zeros, not empty: masked positions are multiplied by zero, and zero times NaN is NaN.
    """
    return [_zeros(shape, dtype, device) for _ in range(count)]


def _token_major(
    count: int, shape: Shape, longest: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """As `_head_major`, but `[S, L, H, D]` in memory, in one piece, so that a window of `longest` tokens may
    begin at any slot: behind a layer's last slot it runs into the next layer's, which nothing reads."""
    num_slots, heads, length, dim = shape
    one = num_slots * length + SPARE_TOKENS
    memory = _zeros((count * one + longest, heads, dim), dtype, device)
    strides = (length * heads * dim, dim, heads * dim, 1)
    return [memory.as_strided(shape, strides, n * one * heads * dim) for n in range(count)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return pages.zeros(shape, dtype).zero_()  # written, and so taken
    return torch.zeros(shape, dtype=dtype, device=device)


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
