"""Calls the fused CPU kernels that compute one part of a layer, or of a step, by itself.

Legend: B rows, Q left-padded length, Hq and H query and K/V heads, D head size.
"""

import ctypes
from typing import NamedTuple

import torch

from llava_batch.engine import draw as drawing
from llava_batch.engine.kernels import plain
from llava_batch.engine.kernels.cpu_abi import (
    LinearStruct,
    ProductStruct,
    Shape,
    by_rows,
    call,
    pointer,
    pointer_or_null,
)
from llava_batch.engine.kernels.cpu_build import library
from llava_batch.engine.passes import Rows

FORMS = {"none": 0, "quick_gelu": 1, "gated": 2}
"""What `matmul` does with the sums: nothing, x * sigmoid(1.702 x), or SiLU of the one half times the other."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    *,
    scaling: float,
    window: int | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """query `[B, Q, Hq, D]`, key and value `[S, H, L, D]` of any strides -> `[B, Q, Hq, D]`.

    The last dimension must be contiguous, key and value of the same strides, and all of one dtype.
    Rows of padding are zero.
    """
    batch, length, heads, dim = query.shape
    decode = length == 1 and causal
    make = torch.empty if min(rows.new) == length else torch.zeros
    out = make(query.shape, dtype=query.dtype)
    shape = Shape(
        *(batch, heads, key.shape[1], dim, length),
        *(query.stride(0), query.stride(2), query.stride(1)),
        *key.stride()[:3],
        *(out.stride(0), out.stride(2), out.stride(1)),
        *(int(causal), window or 0, scaling),
    )
    pointers = (pointer(query), pointer(key), pointer(value), pointer(out))
    name = "decode" if decode else "prefill"
    call(name, query, ctypes.byref(shape), *pointers, by_rows(rows))
    return out


def unfused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """`attend` for a layer that is not fused: query `[B, Hq, Q, D]`, of any D."""
    if query.shape[-1] % 16 == 0:
        return attend(query.transpose(1, 2), key, value, rows, scaling=scaling, window=window)
    form = plain.decode_attention if rows.is_decode else plain.prefill_attention
    return form(query, key, value, rows, scaling, window)


def rope_store(
    qkv: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    num_heads: int,
) -> None:
    """Rotate the queries of `[B, Q, (Hq + 2 H) D]` in place; write its K/V to slots `[S, H, L, D]`.

    num_heads: Hq, which may be 0.
    """
    refuse_other_turns(cosine, key)
    batch, length, _ = qkv.shape
    shape = Shape(batch, num_heads, key.shape[1], key.shape[3], length, 0, 0, 0, *key.stride()[:3])
    tensors = (qkv, cosine, sine, key, value)
    call("rope_store", qkv, ctypes.byref(shape), *map(pointer, tensors), by_rows(rows))


def refuse_other_turns(cosine: torch.Tensor, key: torch.Tensor) -> None:
    """Refuse a rotation that is not of the keys' D."""
    if cosine.shape[-1] != key.shape[3]:
        raise ValueError(
            f"a rotation of {cosine.shape[-1]} entries is not a head's, {key.shape[3]}"
        )


def rotate(query: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, rows: Rows) -> None:
    """Rotate `[B, Q, Hq D]` in place by `[B, Q, D]`."""
    batch, length, width = query.shape
    dim = cosine.shape[-1]
    shape = Shape(batch, width // dim, 0, dim, length)
    nowhere = ctypes.c_void_p()
    pointers = (pointer(query), pointer(cosine), pointer(sine), nowhere, nowhere)
    call("rope_store", query, ctypes.byref(shape), *pointers, by_rows(rows))


def matmul(
    x: torch.Tensor, weight: "Panels", form: str = "none", residual: torch.Tensor | None = None
) -> torch.Tensor:
    """`[..., C]` by a weight in panels -> `[..., columns]`.

    form: one of FORMS. residual: `[..., columns]`, added last.
    """
    weight.check(x)
    out = torch.empty((*x.shape[:-1], weight.columns), dtype=x.dtype)
    tensors = [x.contiguous(), weight.panels, weight.bias]
    if residual is not None:
        if residual.shape != out.shape or residual.dtype != x.dtype:
            raise ValueError(f"a residual of {tuple(residual.shape)} beside {tuple(out.shape)}")
        residual = residual.contiguous()
    shape = ProductStruct(x.numel() // x.shape[-1], x.shape[-1], weight.columns, FORMS[form])
    pointers = (pointer_or_null(tensor) for tensor in (*tensors, residual, out))
    call("product", x, ctypes.byref(shape), *pointers)
    return out


class Panels(NamedTuple):
    """A linear layer's weight as `matmul` takes it.

    panels: `[panels, words, 64, entries of a word]`, see `cpu_matmul.cpp`. bias: `[panels, 64]`, with zeros behind
    its end, or None. columns: of the result.
    """

    panels: torch.Tensor
    bias: torch.Tensor | None
    columns: int

    @property
    def inner(self) -> int:
        """C."""
        return int(self.panels.shape[1] * self.panels.shape[3])

    def check(self, x: torch.Tensor) -> None:
        """Refuse what is not to be multiplied by it."""
        if x.dtype != self.panels.dtype or x.shape[-1] != self.inner:
            raise ValueError(
                f"{x.dtype} {tuple(x.shape)} by a weight of {self.panels.dtype} with {self.inner} inner entries"
            )

    def struct(self) -> LinearStruct:
        """As the kernels take it; good as long as it is."""
        bias = None if self.bias is None else self.bias.data_ptr()
        return LinearStruct(self.panels.data_ptr(), bias, self.columns)


class LayerNorm(NamedTuple):
    """A LayerNorm's weight and bias, `[C]` each, and epsilon."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float


def layer_norm(x: torch.Tensor, norm: LayerNorm) -> torch.Tensor:
    """torch's LayerNorm over the last dimension of a contiguous tensor."""
    out = torch.empty_like(x)
    dim = x.shape[-1]
    sizes = (ctypes.c_int64(x.numel() // dim), ctypes.c_int64(dim), ctypes.c_double(norm.epsilon))
    call("layer_norm", x, *map(pointer, (x, norm.weight, norm.bias, out)), *sizes)
    return out


class Norm(NamedTuple):
    """An RMSNorm's weight `[C]` and epsilon."""

    weight: torch.Tensor
    epsilon: float


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """transformers' RMSNorm over the last dimension of a contiguous tensor."""
    out = torch.empty_like(x)
    dim = x.shape[-1]
    sizes = (ctypes.c_int64(x.numel() // dim), ctypes.c_int64(dim), ctypes.c_double(epsilon))
    call("rms_norm", x, pointer(x), pointer(weight), pointer(out), *sizes)
    return out


def quick_gelu_(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), in place."""
    call("quick_gelu", x, pointer(x), ctypes.c_int64(x.numel()))
    return x


def best_token(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[B, V]` -> the first highest entry of each row, and its log-probability in float32."""
    rows, size = logits.shape
    best = torch.empty(rows, dtype=torch.int64)
    value, log_sum = torch.empty(rows), torch.empty(rows)
    sizes = (ctypes.c_int64(rows), ctypes.c_int64(size))
    outs = (pointer(best), pointer(value), pointer(log_sum))
    call("best_token", logits, pointer(logits), *sizes, *outs)
    return best, value - log_sum


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    point: torch.Tensor,
) -> torch.Tensor:
    """`drawing.draw` of float32 `[R, V]`: the same tokens, and the row in order only where they are not decided
    without."""
    rules = (temperature, top_k, top_p, point)
    if logits.dtype != torch.float32 or any(rule.dtype != torch.float64 for rule in rules):
        raise ValueError(f"logits are {logits.dtype}, must be float32, and the rules float64")
    tokens = torch.full((len(logits),), -1, dtype=torch.int64)
    (few,) = torch.nonzero(top_k == 0, as_tuple=True)
    if len(few) == len(logits):
        tokens = _drawn(logits, temperature, top_p, point)
    elif len(few):
        tokens[few] = _drawn(logits[few], temperature[few], top_p[few], point[few])
    (left,) = torch.nonzero(tokens < 0, as_tuple=True)
    if len(left):
        tokens[left] = drawing.draw(logits[left], *(rule[left] for rule in rules))
    return tokens


def _drawn(logits: torch.Tensor, *rules: torch.Tensor) -> torch.Tensor:
    """The tokens `[R]` by temperature, top_p and point; -1 where they are not decided."""
    rows, size = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    sizes = (ctypes.c_int64(rows), ctypes.c_int64(size))
    logits, *rest = (x.contiguous() for x in (logits, *rules))
    library().draw(pointer(logits), *sizes, *map(pointer, rest), pointer(tokens))
    return tokens
