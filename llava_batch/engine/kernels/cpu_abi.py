"""How the fused CPU kernels are called: the structures of `cpu_kernels.h`, by ctypes, and pointers to tensors.

The memory that a pointer names is the caller's to keep until the call is over.
"""

import ctypes
from typing import Any

import torch

from llava_batch.engine.kernels.cpu_build import NAMES, library
from llava_batch.engine.passes import Rows


class Shape(ctypes.Structure):
    """`Attention` of `cpu_kernels.h`."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "heads", "kv_heads", "dim", "length"),
            *("q_batch", "q_head", "q_token"),
            *("k_slot", "k_head", "k_token"),
            *("o_batch", "o_head", "o_token"),
            *("causal", "window"),
        )
    ] + [("scaling", ctypes.c_double)]


class RowsStruct(ctypes.Structure):
    """`Rows` of `cpu_kernels.h`."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("slots", "past", "count", "widths", "origins", "shared")
    ]


class ProductStruct(ctypes.Structure):
    """`Product` of `cpu_kernels.h`."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "inner", "columns", "form")]


class LinearStruct(ctypes.Structure):
    """`Linear` of `cpu_layer.cpp`."""

    _fields_ = [
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
    ]


def call(name: str, tensor: torch.Tensor, *arguments: object) -> None:
    """The kernel of that name for the tensor's dtype."""
    getattr(library(), f"{name}_{NAMES[tensor.dtype]}")(*arguments)


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where it begins."""
    return ctypes.c_void_p(tensor.data_ptr())


def pointer_or_null(tensor: torch.Tensor | None) -> ctypes.c_void_p | None:
    """Null for None."""
    return None if tensor is None else pointer(tensor)


def by_rows(rows: Rows) -> Any:
    """By reference; good as long as `rows` is."""
    address, stride = rows.array.ctypes.data, rows.array.strides[0]
    return ctypes.byref(RowsStruct(*(address + row * stride for row in range(len(rows.array)))))
