"""Attention of the packed path by one of three kernels: flash-attn 2, torch's varlen, torch's SDPA.

Legend: B rows, T their new tokens in all, Hq query heads, H K/V heads, D head size, b slots of a
decode step, L slot length. Each has a prefill form over `passes.Packed` and a decode form over
`passes.Prefix`. They are tried before they are used (`self_test`): packages of other versions may be
there and compute something else.
flash-attn: github.com/Dao-AILab/flash-attention, version 2.8; varlen: torch.nn.attention.varlen.
"""

import importlib.util
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_batch.engine.kernels.contract import Kernels
from llava_batch.engine.kernels.norms import exchange_norms
from llava_batch.engine.passes import Packed, Prefix
from llava_batch.engine.views import slot_tokens, tokens

NAMES = ("flash", "varlen", "sdpa")
"""Best first."""


def kernels(name: str) -> Kernels:
    """The kernels of one of NAMES, as the packages here have them."""
    if name == "flash":
        return Kernels(
            name=name,
            packed=True,
            prefill=flash_prefill,
            decode=flash_decode,
            gathers=True,
            tower="flash_attention_2",
            prepare=exchange_norms,
        )
    if name == "varlen":
        by_length = "seqused_k" in _varlen_parameters()
        decode = varlen_decode if by_length else sdpa_decode
        return Kernels(
            name=name,
            packed=True,
            prefill=varlen_prefill,
            decode=decode,
            reads_span=not by_length,
            gathers=True,
            prepare=exchange_norms,
        )
    return Kernels(
        name=name,
        packed=True,
        prefill=sdpa_prefill,
        decode=sdpa_decode,
        reads_span=True,
        prepare=exchange_norms,
    )


def why_not(name: str) -> str | None:
    """The package that a kernel needs and that is not installed, with the command; None if it is."""
    if name == "flash" and importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed: pip install 'llava-batch[flash]'"
    if name == "varlen" and not {"scale", "window_size"} <= _varlen_parameters():
        return (
            f"torch {torch.__version__} has no variable-length attention: pip install 'torch>=2.11'"
        )
    return None


def _varlen_parameters() -> set[str]:
    """What torch's `varlen_attn` takes; empty where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return set()
    return set(inspect.signature(varlen_attn).parameters)


def flash_prefill(
    query: Tensor, key: Tensor, value: Tensor, rows: Packed, scaling: float, window: int | None
) -> Tensor:
    """One call over all rows; the causal mask is aligned to the last key."""
    from flash_attn import flash_attn_varlen_func

    mixed = flash_attn_varlen_func(
        query[0].transpose(0, 1),
        rows.packed(key),
        rows.packed(value),
        cu_seqlens_q=rows.q_offsets,
        cu_seqlens_k=rows.k_offsets,
        max_seqlen_q=max(rows.new),
        max_seqlen_k=rows.max_keys,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )
    return mixed[None]


def flash_decode(
    query: Tensor, key: Tensor, value: Tensor, step: Prefix, scaling: float, window: int | None
) -> Tensor:
    """Each slot's own length is read, and no more; the K/V of the step are in the slots already."""
    from flash_attn import flash_attn_with_kvcache

    return flash_attn_with_kvcache(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        cache_seqlens=step.lengths,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, offsets: tuple[Tensor, Tensor],
    lengths: tuple[int, int], scaling: float, window_size: tuple[int, int], **more: Any,
) -> Tensor:  # fmt: skip
    """torch's function, by the arguments that this torch's has."""
    from torch.nn.attention.varlen import varlen_attn

    if "enable_gqa" in _varlen_parameters():
        more["enable_gqa"] = query.shape[1] != key.shape[1]
    return varlen_attn(
        query,
        key,
        value,
        *offsets,
        *lengths,
        scale=scaling,
        window_size=window_size,
        **more,
    )


def varlen_prefill(
    query: Tensor, key: Tensor, value: Tensor, rows: Packed, scaling: float, window: int | None
) -> Tensor:
    """One call over all rows; the causal mask is aligned to the last key."""
    offsets = (rows.q_offsets, rows.k_offsets)
    lengths = (max(rows.new), rows.max_keys)
    packed = (query[0].transpose(0, 1), rows.packed(key), rows.packed(value))
    window_size = (-1 if window is None else window - 1, 0)
    return _varlen(*packed, offsets, lengths, scaling, window_size)[None]


def varlen_decode(
    query: Tensor, key: Tensor, value: Tensor, step: Prefix, scaling: float, window: int | None
) -> Tensor:
    """The slots one behind the other are the keys; each slot's own length of them is used.

    A query that is alone sees all of these with a causal mask and without, and only without does the
    kernel take the queries that share a K/V head together, reading it once, and split long rows.
    """
    size, length = key.shape[0], key.shape[2]
    slot = slot_tokens(key)
    offsets = (step.q_offsets, step.q_offsets * slot)
    keys, values = (tokens(part, (size - 1) * slot + length) for part in (key, value))
    lengths = (1, length)
    window_size = (-1, -1) if window is None else (window - 1, 0)
    mixed = _varlen(
        *(query[:, :, 0], keys, values, offsets, lengths, scaling, window_size),
        seqused_k=step.lengths,
    )
    return mixed[:, None]


def sdpa_prefill(
    query: Tensor, key: Tensor, value: Tensor, rows: Packed, scaling: float, window: int | None
) -> Tensor:
    """Row by row: a mask only where a row has a past or is longer than the window."""
    out = torch.empty_like(query)
    begin = 0
    for row, (past, new) in enumerate(zip(rows.past, rows.new, strict=True)):
        span = slice(begin, begin + new)
        if rows.is_fresh:
            keys, values = key[:, :, span], value[:, :, span]
        else:
            keys, values = rows.held(key, row), rows.held(value, row)
        plain = past == 0 and (window is None or new <= window)
        out[:, :, span] = F.scaled_dot_product_attention(
            query[:, :, span],
            keys,
            values,
            attn_mask=None if plain else rows.mask(row, window, query.device),
            is_causal=plain,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        begin += new
    return out.transpose(1, 2)


def sdpa_decode(
    query: Tensor, key: Tensor, value: Tensor, step: Prefix, scaling: float, window: int | None
) -> Tensor:
    """The queries that share a K/V head are its queries: no head is repeated.

    Rows of several slots go by themselves: what lies behind a slot is another row's, whose keys must not
    be read, finite or not.
    """
    size, heads, _, dim = query.shape
    grouped = query.reshape(size, key.shape[1], -1, dim)
    mixed = F.scaled_dot_product_attention(
        grouped,
        key[:, :, : step.span],
        value[:, :, : step.span],
        attn_mask=step.bias(window, query.dtype),
        scale=scaling,
    )
    for slot, count in step.wide:
        place = (
            slice(slot, slot + 1),
            slice(None),
            slice(max(0, count - (window or count)), count),
        )
        mixed[slot] = F.scaled_dot_product_attention(
            grouped[slot : slot + 1], key[place], value[place], scale=scaling
        )[0]
    return mixed.reshape(size, 1, heads, dim)
