"""What an attention is to the engine: its kernels, and the place that they are wanted for.

Legend: B rows, Q their left-padded length, T their new tokens in all, b slots of a decode step, Hq query
heads, H K/V heads, L slot length, D head size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llava_batch.engine.draw import draw

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any, float, int | None], torch.Tensor]
"""query, keys, values, the pass, scaling, window (None: all keys before it are seen)."""


def best_token(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[B, V]` -> each row's most likely token and its log-probability in float32."""
    logits = logits.float()
    value, best = logits.max(dim=-1)
    return best, value - torch.logsumexp(logits, dim=-1)


Draw = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]
"""As `draw.draw`."""


def as_it_is(model: Any) -> None:
    """Most kernels need nothing of a model but that it calls them."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """An attention's kernels, and the form of a pass that they work on.

    packed: passes are `Packed` and `Prefix`, and slots lie in memory as `[S, L, H, D]`; else passes are
        `Rows`, and slots lie as `[S, H, L, D]`.
    prefill, decode: query `[B, Hq, Q, D]` and what the pass's `store` returned -> `[B, Q, Hq, D]`. Of a
        `Packed` pass B is 1 and Q is T; of a decode step Q is 1, and of a `Prefix` B is b.
    reads_span: decode reads `Prefix.span` keys of every slot, however few it holds.
    gathers: prefill copies all that a pass's rows hold, keys and values, where one of them has a past.
    tower: what transformers calls the attention of the vision tower on a card.
    best_token: logits `[B, V]` -> each row's first highest entry and its log-probability.
    draw: float32 logits `[R, V]` and each row's rules -> its token; see `draw.draw`.
    prepare: fits a model on its device to the kernels, once.
    """

    name: str
    packed: bool
    prefill: Attend
    decode: Attend
    reads_span: bool = False
    gathers: bool = False
    tower: str = "sdpa"
    best_token: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = best_token
    draw: Draw = draw
    prepare: Callable[[Any], None] = as_it_is


@dataclass(frozen=True, kw_only=True)
class Place:
    """What an attention is wanted for, as far as it is known before a device is touched.

    device: `cpu` or `cuda`. capability, card: the card's CUDA compute capability (None: not known, and
    taken for able) and its name. quantized: the language model's weights are not stored as floats.
    """

    device: str
    dtype: torch.dtype
    capability: tuple[int, int] | None = None
    card: str = "the card"
    quantized: bool = False
