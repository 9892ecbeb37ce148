"""Memory on CPU that is read again and again, in pages of 2 MiB where Linux gives them: numpy asks for them.

With pages of 4 KiB the processor looks up an address for each 4 KiB that it streams, and what it asks for ahead ends
with the page (benchmarks/LOG.md).
"""

from math import prod

import numpy as np
import torch

PAGE = 2**21
"""From two of them on numpy asks for large pages, unless NUMPY_MADVISE_HUGEPAGE is 0."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros. Pages are touched when they are first written: what nobody writes costs no memory.

    RuntimeError where there is not so much, as of any tensor.
    """
    size = prod(shape) * dtype.itemsize
    if size < PAGE:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    try:
        memory = np.zeros(size + PAGE, np.uint8)
    except MemoryError as error:
        raise RuntimeError(f"not enough memory for {size} bytes") from error
    begin = -memory.ctypes.data % PAGE
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(shape)
