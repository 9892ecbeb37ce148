"""Which attention the engine takes: what is asked for, or the best that can be had here."""

import logging
from typing import Any

import torch

from llava_batch.engine.cache import head_dim, kv_heads
from llava_batch.engine.kernels import cpu as native
from llava_batch.engine.kernels import cuda as kernels
from llava_batch.engine.kernels import self_test as trial

log = logging.getLogger(__name__)

ATTENTIONS = ("auto", "native", "torch", *kernels.NAMES)


def choose_attention(asked: str, dtype: torch.dtype, device: torch.device, config: Any) -> str:
    """One of ATTENTIONS but `auto`; asked for and not there is an error that says what is missing.

    config: the language model's; a kernel that must be tried is tried in its shape.
    """
    if asked not in ATTENTIONS:
        raise ValueError(f"attention is {asked!r}, must be one of {', '.join(ATTENTIONS)}")
    if asked == "torch":
        return asked
    best_first = ("native",) if device.type == "cpu" else kernels.NAMES
    for name in best_first if asked == "auto" else (asked,):
        missing = unavailable(name, dtype, device, config)
        if missing is None:
            return name
        if asked != "auto":
            raise ValueError(f"attention {asked!r} cannot be had: {missing}; or give auto")
        log.info("attention %s cannot be had: %s", name, missing)
    return "torch"


def unavailable(name: str, dtype: torch.dtype, device: torch.device, config: Any) -> str | None:
    """Why an attention cannot be had here, or None."""
    if name == "native":
        return f"the device is {device.type}" if device.type != "cpu" else native.unavailable(dtype)
    missing = kernels.unavailable(name, dtype, device)
    if missing is not None or device.type == "cpu":
        return missing
    return trial.fault(
        kernels.kernels(name),
        num_heads=config.num_attention_heads,
        kv_heads=kv_heads(config),
        head_dim=head_dim(config),
        window=getattr(config, "sliding_window", None),
        dtype=dtype,
        device=device,
    )
