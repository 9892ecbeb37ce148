"""The attention that transformers' layers call, registered through its attention interface.

It hands each layer's query to the kernels of the engine, with the pass that is at work.
Legend: B rows, Q queries of a row, Hq query heads, D head size.
"""

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llava_batch.engine.kernels.contract import Kernels
from llava_batch.engine.passes import Pass

NAME = "llava_batch_slots"


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
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """query `[B, Hq, Q, D]`, key and value as the pass stored them -> `[B, Q, Hq, D]`."""
    attend = slot_kernels.decode if slot_rows.is_decode else slot_kernels.prefill
    return attend(query, key, value, slot_rows, scaling, sliding_window), None


def register() -> None:
    """Make `NAME` known to transformers; doing it again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, slot_attention)
