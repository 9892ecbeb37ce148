"""The attention that transformers' layers call, registered through its attention interface.

It hands each layer's query to the kernels of the engine, with the pass that is at work.
Legend: B rows, Q queries of a row, Hq query heads, L slot length, D head size.
"""

from collections.abc import Set

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llava_batch.engine.kernels.contract import Kernels
from llava_batch.engine.passes import Pass

NAME = "llava_batch_slots"
HARMLESS = frozenset(
    {
        *("dropout", "position_ids", "cache_position", "use_cache"),
        *("output_attentions", "output_hidden_states"),
    }
)
"""What transformers passes to attentions and changes no number: there is no dropout outside of training,
the pass knows its positions, and what a layer is to hand out beside its answer is not the kernels'."""

KNOWN = frozenset({"slot_rows", "slot_kernels", "slot_tokens"})
"""What the engine passes to every layer, and the fused ones have from the cache."""


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    slot_rows: Pass,
    slot_kernels: Kernels,
    slot_tokens: int,
    sliding_window: int | None = None,
    **more: object,
) -> tuple[torch.Tensor, None]:
    """query `[B, Hq, Q, D]`, key and value as the pass stored them -> `[B, Q, Hq, D]`.

    slot_tokens: L, what a slot can hold; a row may have several.

    Raises:
        ValueError: the layer asks for something that is not implemented; it is named.
    """
    refuse_unknown(module, attention_mask, more.keys() - HARMLESS)
    attend = slot_kernels.decode if slot_rows.is_decode else slot_kernels.prefill
    window = narrowed(sliding_window, slot_rows.room(slot_tokens))
    return attend(query, key, value, slot_rows, scaling, window), None


def narrowed(window: int | None, room: int) -> int | None:
    """A layer's window, or None where all that a row has room for is seen: kernels are faster without."""
    return None if window is None or window >= room else window


def refuse_unknown(
    module: torch.nn.Module, attention_mask: torch.Tensor | None, unknown: Set[str]
) -> None:
    """Refuse what a layer asks of its attention beyond the causal mask and a window."""
    if attention_mask is not None:
        unknown = unknown | {"attention_mask"}
    if unknown:
        raise ValueError(
            f"{type(module).__name__} asks its attention for {', '.join(sorted(unknown))}, "
            "which is not implemented; this model cannot be had"
        )


def register() -> None:
    """Make `NAME` known to transformers; doing it again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, slot_attention)
