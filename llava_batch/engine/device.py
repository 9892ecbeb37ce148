"""The device beside the host: copies there and back without waiting, and whether its memory is exhausted."""

import numpy as np
import torch

SIGNS = ("out of memory", "not enough memory", "alloc_failed")
"""torch on a device and on the host, and cuBLAS or cuDNN wanting a workspace; in lower case."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, or came of handling one that does."""
    while error is not None:
        if any(sign in str(error).lower() for sign in SIGNS):
            return True
        error = error.__context__
    return False


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on `device`; to CUDA from pinned memory, so that the host does not wait for it."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in pinned memory, which is complete only once the stream has come to it."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
        tensor, non_blocking=True
    )
