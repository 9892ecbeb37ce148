"""Slots seen as longer than they are: a row that takes several adjacent slots, as one.

Legend: S slots, H K/V heads, L slot length, D head size. Slots `[S, H, L, D]` lie in memory either head by
head, as their shape says, or token by token, `[S, L, H, D]` transposed. All of these are views; nothing
is copied, nor is a single tensor that is `joined`.
"""

import torch


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Tensors one behind the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def row(slots: torch.Tensor, slot: int, width: int) -> torch.Tensor:
    """`[H, width L, D]`: the room of the `width` slots from `slot` on, as the one row's that has it.

    Head by head the same bytes are cut anew, so that what one width wrote is not to be read with another.
    """
    if width == 1:
        return slots[slot]
    _, heads, length, dim = slots.shape
    start, head, token, one = slots.stride()
    if head > token:
        head *= width
    begin = slots.storage_offset() + slot * start
    return slots.as_strided((heads, width * length, dim), (head, token, one), begin)


def slot_tokens(slots: torch.Tensor) -> int:
    """L, also of `windows`; of slots that lie token by token."""
    return int(slots.stride(0) // slots.stride(2))


def tokens(slots: torch.Tensor, count: int) -> torch.Tensor:
    """`[count, H, D]`: the first tokens of slots that lie token by token, one slot behind the other."""
    _, heads, _, dim = slots.shape
    _, head, token, one = slots.stride()
    return slots.as_strided((count, heads, dim), (token, head, one), slots.storage_offset())


def windows(slots: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """`[count, H, length, D]`: what lies from the first slots' beginnings on, their ends overlapping where
    `length` is more than L; of slots that lie token by token. The cache has memory behind its last slot
    for the longest."""
    _, heads, _, dim = slots.shape
    return slots.as_strided((count, heads, length, dim), slots.stride(), slots.storage_offset())
