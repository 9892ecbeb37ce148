"""What keeps a job from running on the machines there are: kernels, packages, memory. Asked by the
driver, so that one line says it instead of every worker.
"""

import importlib.util

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.gpus import Card
from llava_batch.job import Job, bad_flag


def refuse_what_is_missing(job: Job, *, on_gpu: bool, card: Card | None) -> None:
    """Kernels and packages that the engine would ask for, and fail to find, in every worker."""
    found = _missing_kernel(job, on_gpu=on_gpu)
    if found:
        raise bad_flag("attention", job.attention, found)
    if job.quantization:
        from llava_batch.engine.model import quantize

        # A card that could not be looked at is taken for able: its worker says if it is not.
        capability = (card.capability if card else quantize.FP8_CAPABILITY) if on_gpu else None
        found = quantize.problem(job.quantization, job.dtype, capability)
        if found:
            raise bad_flag("quantization", job.quantization, found)


def _missing_kernel(job: Job, *, on_gpu: bool) -> str | None:
    """Why an attention that was asked for cannot be had, or None."""
    if job.attention == "native" and on_gpu:
        return "its kernels are for CPUs, give auto"
    if job.attention not in ("flash", "varlen"):
        return None
    if not on_gpu:
        return "it needs a CUDA device, give auto"
    if job.dtype == "float32":
        return "it computes in bfloat16 or float16, give auto or another --dtype"
    if job.attention == "flash" and importlib.util.find_spec("flash_attn") is None:
        return "needs flash-attn; pip install 'llava-batch[flash]'"
    return None


def refuse_what_does_not_fit(job: Job, checkpoint: Checkpoint, card: Card | None) -> None:
    """A checkpoint that is quantized already, or whose weights and one slot exceed the card."""
    if job.quantization and getattr(checkpoint.config, "quantization_config", None) is not None:
        raise bad_flag(
            "quantization", job.quantization, f"{job.model} is quantized already, drop it"
        )
    if card is None:
        return
    import torch

    from llava_batch.engine.model import memory, sizing

    device = memory.Device(name=card.name, total_bytes=card.total_bytes, free_bytes=card.free_bytes)
    found = memory.refusal(
        checkpoint.config,
        list(memory.headers(checkpoint.folder)),
        device,
        dtype=getattr(torch, job.dtype),
        quantization=job.quantization,
        max_tokens=sizing.choose_max_tokens(checkpoint.config.text_config, "auto"),
    )
    if found:
        raise bad_flag("model", job.model, found)
