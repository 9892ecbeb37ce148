"""Attention in plain torch, right on every device: what the other kernels are held against.

Legend: B rows, Q queries of a row, Hq query heads, H K/V heads, G = Hq / H, S slots, L slot length,
D head size. A query at position p of its row sees the keys `[max(0, p - window + 1), p]` of its slot.
"""

import torch

from llava_batch.engine.kernels.contract import Kernels
from llava_batch.engine.passes import Rows
from llava_batch.engine.views import row as row_of

BLOCK = 128
"""Queries of one block of prefill: the masked half is skipped but for the diagonal blocks."""


def prefill_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Row by row and block by block; padding rows of `[B, Q, Hq, D]` are left at zero."""
    batch, heads, length, dim = query.shape
    out = query.new_zeros(batch, length, heads, dim)
    places = zip(rows.slots, rows.past, rows.new, rows.widths, strict=True)
    for row, (slot, past, new, width) in enumerate(places):
        keys, values = (row_of(part, slot, width)[:, : past + new] for part in (key, value))
        for start in range(0, new, BLOCK):
            stop = min(start + BLOCK, new)
            first = 0 if window is None else max(0, past + start - window + 1)
            span = slice(first, past + stop)
            part = query[row, :, length - new + start : length - new + stop]
            positions = torch.arange(past + start, past + stop, device=query.device)
            scores = grouped_scores(part, keys[:, span], scaling)
            weights = masked_softmax(scores, positions, first, window).to(values.dtype)
            answer = torch.matmul(weights.flatten(1, 2), values[:, span])
            answer = answer.view(heads, stop - start, dim)
            out[row, length - new + start : length - new + stop] = answer.transpose(0, 1)
    return out


def grouped_scores(query: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """query `[Hq, Q, D]`, keys `[H, T, D]` -> float32 `[H, G, Q, T]`."""
    kv_heads = keys.shape[0]
    grouped = query.reshape(kv_heads, -1, query.shape[-1])
    scores = torch.matmul(grouped, keys.transpose(1, 2)) * scaling
    return scores.float().view(kv_heads, -1, query.shape[1], keys.shape[1])


def masked_softmax(
    scores: torch.Tensor, positions: torch.Tensor, first: int, window: int | None
) -> torch.Tensor:
    """Softmax over the keys that each query sees; `first` is the position of the first key."""
    keys = first + torch.arange(scores.shape[-1], device=scores.device)
    hidden = keys[None] > positions[:, None]
    if window is not None:
        hidden |= keys[None] <= positions[:, None] - window
    return scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1)


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """One query a row, as one product over all slots -> `[B, 1, Hq, D]`.

    The slots are used whole: a product on a sliced (strided) cache is many times slower in bfloat16.
    Slots of no row compute on what they hold and are thrown away; rows of several slots go by themselves.
    """
    _, heads, _, dim = query.shape
    num_slots, kv_heads, length, _ = key.shape
    slots, past = rows.places(query.device)
    spread = query.new_zeros(num_slots, heads, dim)
    spread[slots] = query[:, :, 0]
    grouped = spread.view(num_slots * kv_heads, heads // kv_heads, dim)
    scores = torch.bmm(grouped, key.reshape(-1, length, dim).transpose(1, 2)).float() * scaling
    last = torch.zeros(num_slots, dtype=torch.long, device=query.device)
    last[slots] = past
    places = torch.arange(length, device=query.device)
    hidden = places[None] > last[:, None]
    if window is not None:
        hidden |= places[None] <= last[:, None] - window
    scores = scores.view(num_slots, heads, length).masked_fill_(hidden[:, None], float("-inf"))
    weights = scores.softmax(dim=-1).to(value.dtype).view(-1, heads // kv_heads, length)
    out = torch.bmm(weights, value.reshape(-1, length, dim)).view(num_slots, heads, dim)
    answers = out[slots][:, None]
    for number in rows.wide:
        one = slice(number, number + 1)
        few = (query[one], key, value, rows.part([number]))
        answers[one] = prefill_attention(*few, scaling, window)
    return answers


KERNELS = Kernels(name="torch", packed=False, prefill=prefill_attention, decode=decode_attention)
