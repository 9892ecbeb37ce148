"""What keeps a job from running on the machines there are: asked by the driver, so that one line says it
instead of every worker. The engine knows what can be had; here is how it is said of a flag, and what is
taken for granted of a card that could not be looked at.
"""

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.gpus import Card
from llava_batch.job import Job, bad_flag


def refuse_what_is_missing(job: Job, *, on_gpu: bool, card: Card | None) -> None:
    """Kernels and packages that the engine would ask for, and fail to find, in every worker."""
    if job.attention != "auto":
        found = _why_not_attention(job, on_gpu=on_gpu, card=card)
        if found:
            raise bad_flag("attention", job.attention, f"{found}; give auto")
    if job.quantization:
        from llava_batch.engine.model import quantize

        # A card that could not be looked at is taken for able: its worker says if it is not.
        capability = (card.capability if card else quantize.FP8_CAPABILITY) if on_gpu else None
        found = quantize.why_not(job.quantization, job.dtype, capability)
        if found:
            raise bad_flag("quantization", job.quantization, found)


def _why_not_attention(job: Job, *, on_gpu: bool, card: Card | None) -> str | None:
    import torch

    from llava_batch.engine.kernels import choose
    from llava_batch.engine.kernels.contract import Place

    place = Place(
        device="cuda" if on_gpu else "cpu",
        dtype=getattr(torch, job.dtype),
        capability=card.capability if card else None,
        card=card.name if card else "the card",
        quantized=job.quantization is not None,
    )
    return choose.why_not(job.attention, place)


def refuse_what_does_not_fit(job: Job, checkpoint: Checkpoint, card: Card | None) -> None:
    """A model that the engine is not exact for; one that is quantized already, or whose weights and one
    slot exceed the card."""
    from llava_batch.engine.model import supported
    from llava_batch.engine.model.quantize import is_quantized

    found = supported.why_not(checkpoint.config)
    if found:
        raise bad_flag("model", job.model, found)
    if job.quantization and is_quantized(checkpoint.config):
        raise bad_flag(
            "quantization", job.quantization, f"{job.model} is quantized already, drop it"
        )
    if card is None:
        return
    import torch

    from llava_batch.engine.model import memory, sizing

    device = memory.Device(name=card.name, total_bytes=card.total_bytes, free_bytes=card.free_bytes)
    found = memory.why_not(
        checkpoint.config,
        list(memory.headers(checkpoint.folder)),
        device,
        dtype=getattr(torch, job.dtype),
        quantization=job.quantization,
        max_tokens=sizing.choose_max_tokens(checkpoint.config.text_config, "auto"),
    )
    if found:
        raise bad_flag("model", job.model, found)
