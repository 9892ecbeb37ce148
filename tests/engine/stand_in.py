"""flash-attn's and torch's documented functions in plain torch, one query at a time.

Written from their documentation, not from our kernels: causal masks aligned to the bottom right,
`window_size` as (left, right) keys beside the query's own, K/V heads shared by groups of query heads.
"""

import sys
import types

import torch

calls: list[str] = []


def _rows(query, key, value, scale, left, right):
    """`[Q, Hq, D]`, `[K, H, D]` -> `[Q, Hq, D]`: query i stands at key i + K - Q."""
    out = torch.zeros_like(query)
    group = query.shape[1] // key.shape[1]
    for number in range(len(query)):
        place = number + len(key) - len(query)
        first = 0 if left < 0 else max(0, place - left)
        last = len(key) - 1 if right < 0 else min(len(key) - 1, place + right)
        for head in range(query.shape[1]):
            keys = key[first : last + 1, head // group].float()
            if len(keys):
                weights = torch.softmax(keys @ query[number, head].float() * scale, 0)
                out[number, head] = weights @ value[first : last + 1, head // group].float()
    return out


def _varlen(query, key, value, q_offsets, k_offsets, scale, left, right, lengths=None):
    assert q_offsets.dtype == k_offsets.dtype == torch.int32
    assert q_offsets[-1] == len(query)
    assert k_offsets[-1] == len(key) if lengths is None else k_offsets[-1] <= len(key)
    out = torch.empty_like(query)
    for row in range(len(q_offsets) - 1):
        mine = slice(int(q_offsets[row]), int(q_offsets[row + 1]))
        begin = int(k_offsets[row])
        end = int(k_offsets[row + 1]) if lengths is None else begin + int(lengths[row])
        assert end <= len(key)
        out[mine] = _rows(query[mine], key[begin:end], value[begin:end], scale, left, right)
    return out


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
):  # fmt: skip
    calls.append("flash_attn_varlen_func")
    assert all(part.stride(-1) == 1 for part in (q, k, v))
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    assert max_seqlen_k == int(cu_seqlens_k.diff().max())
    left, right = window_size[0], 0 if causal else window_size[1]
    return _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, left, right)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, softmax_scale=None, causal=False, window_size=(-1, -1),
):  # fmt: skip
    calls.append("flash_attn_with_kvcache")
    assert all(part.stride(-1) == 1 for part in (q, k_cache, v_cache))
    assert cache_seqlens.dtype == torch.int32
    assert k is None, "the step's keys are in the cache already"
    left, right = window_size[0], 0 if causal else window_size[1]
    return torch.stack(
        [
            _rows(q[row], k_cache[row, :size], v_cache[row, :size], softmax_scale, left, right)
            for row, size in enumerate(cache_seqlens.tolist())
        ]
    )


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
    return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False, seqused_k=None,
):  # fmt: skip
    """torch 2.12's."""
    calls.append("varlen_attn" if seqused_k is None else "varlen_attn by length")
    assert enable_gqa or query.shape[1] == key.shape[1]
    left, right = window_size
    return _varlen(query, key, value, cu_seq_q, cu_seq_k, scale, left, right, seqused_k)


def varlen_attn_without_lengths(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
    return_aux=None, scale=None, window_size=(-1, -1),
):  # fmt: skip
    """An earlier torch's."""
    calls.append("varlen_attn")
    return _varlen(query, key, value, cu_seq_q, cu_seq_k, scale, *window_size)


def install(monkeypatch, varlen=varlen_attn) -> list[str]:
    """Put both modules in place, and let the engine believe that they can be had; the calls made."""
    from llava_batch.engine.kernels import choose

    flash = types.ModuleType("flash_attn")
    vars(flash).update(
        flash_attn_varlen_func=flash_attn_varlen_func,
        flash_attn_with_kvcache=flash_attn_with_kvcache,
    )
    torchs = types.ModuleType("torch.nn.attention.varlen")
    vars(torchs).update(varlen_attn=varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", torchs)
    monkeypatch.setattr(choose, "why_not", lambda name, place: None)
    calls.clear()
    return calls
