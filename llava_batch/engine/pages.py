"""Memory on CPU that is read again and again: in pages of 2 MiB where Linux gives them.

With pages of 4 KiB the processor looks up an address for each 4 KiB that it streams, and what it asks for ahead ends
with the page (benchmarks/LOG.md).
"""

import ctypes
import sys
from functools import cache
from math import prod

import numpy as np
import torch

PAGE = 2**21
_MADV_HUGEPAGE = 14


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros. Pages are touched when they are first written: what nobody writes costs no memory.

    RuntimeError where there is not so much, as of any tensor.
    """
    size = prod(shape) * dtype.itemsize
    if size < PAGE:
        return torch.zeros(shape, dtype=dtype)
    try:
        memory = np.zeros(size + PAGE, np.uint8)
    except MemoryError as error:
        raise RuntimeError(f"not enough memory for {size} bytes") from error
    begin = -memory.ctypes.data % PAGE
    _advise(memory.ctypes.data + begin, size // PAGE * PAGE)
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(shape)


def _advise(address: int, size: int) -> None:
    """Ask for large pages. A kernel that has none says so, and nothing but speed is lost."""
    if sys.platform == "linux":
        _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_HUGEPAGE)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
