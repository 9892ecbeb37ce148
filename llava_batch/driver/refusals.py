"""What keeps a job from running on the machines there are: asked by the driver, so that one line says it
instead of every worker. The engine knows what can be had; here is how it is said of a flag, and what is
taken for granted of a card that could not be looked at.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.gpus import Card
from llava_batch.driver.settle import Settled
from llava_batch.errors import UsageError
from llava_batch.generate.choices import choices_of
from llava_batch.job import Job, bad_flag, flag_name
from llava_batch.prompts.asks import shortest_asks
from llava_batch.prompts.templates import BadPrompt, place_images


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


def refuse_what_does_not_fit(
    job: Job, checkpoint: Checkpoint, card: Card | None, slot_tokens: int | None
) -> None:
    """A model that the engine is not exact for; one that is quantized already, or whose weights and one
    slot of so many tokens exceed the card."""
    from llava_batch.engine.model.quantize import is_quantized

    _refuse_unsupported(job, checkpoint)
    if job.quantization and is_quantized(checkpoint.config):
        raise bad_flag(
            "quantization", job.quantization, f"{job.model} is quantized already, drop it"
        )
    if card is None:
        return
    import torch

    from llava_batch.engine.model import memory, sizing

    config = checkpoint.config
    most = sizing.choose_max_tokens(config.text_config, "auto")
    device = memory.Device(name=card.name, total_bytes=card.total_bytes, free_bytes=card.free_bytes)
    found = memory.why_not(
        config,
        list(memory.headers(checkpoint.folder)),
        device,
        dtype=getattr(torch, job.dtype),
        quantization=job.quantization,
        slot_tokens=sizing.choose_slot_tokens(config, slot_tokens or "auto", most),
    )
    if found:
        raise bad_flag("model", job.model, found)


def _refuse_unsupported(job: Job, checkpoint: Checkpoint) -> None:
    from llava_batch.engine.model import supported

    found = supported.why_not(checkpoint.config)
    if found:
        raise bad_flag("model", job.model, found)


def refuse_what_is_too_long(settled: Settled, checkpoint: Checkpoint) -> None:
    """Settings that no image could be answered under: with one image, the shortest prompt that they can
    make and an answer at its limit are more tokens than the model has positions for.

    Raises:
        UsageError: the flag to change, and how far.
    """
    from llava_batch.engine.model import sizing

    job = settled.job
    _refuse_unsupported(job, checkpoint)
    most = sizing.choose_max_tokens(checkpoint.config.text_config, "auto")
    for turns in shortest_asks(job, settled.recipe, checkpoint.guards):
        prompt = prompt_tokens(job, checkpoint, turns)
        if prompt is None:
            continue
        answer = answer_tokens(job, checkpoint)
        if prompt + len(turns) * answer <= most:
            continue
        room = (most - prompt) // len(turns)
        if room < 1 or job.choices:
            raise _too_long(job, turns, prompt, most)
        raise bad_flag("max_new_tokens", job.max_new_tokens, f"an image and its prompt take {prompt} "
                       f"tokens, and the model has {most} positions; give at most {room}")  # fmt: skip


def prompt_tokens(job: Job, checkpoint: Checkpoint, turns: tuple[str, ...]) -> int | None:
    """Tokens of all the prompts of a dialogue about one image; None where that cannot be said of one."""
    try:
        segments = checkpoint.renderer(job.template)(place_images(turns, 1), job.system)
    except (BadPrompt, UsageError):  # of several images, or of this very text: a row will tell
        return None
    with _told_by_us():
        ids = [i for n, s in enumerate(segments) for i in checkpoint.encode(s, first=n == 0)]
    fewest, _ = checkpoint.image_tokens_range
    return len(ids) + ids.count(checkpoint.image_token_id) * (fewest - 1)


@contextmanager
def _told_by_us() -> Iterator[None]:
    """transformers warns of what is longer than the model's positions: that is what is asked here."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def answer_tokens(job: Job, checkpoint: Checkpoint) -> int:
    """Tokens of one answer at its limit."""
    choices = choices_of(job, checkpoint)
    return max(len(c.token_ids) for c in choices) if choices else job.max_new_tokens


def _too_long(job: Job, turns: tuple[str, ...], prompt: int, most: int) -> UsageError:
    asked = max(turns, key=len)
    given = {"system": job.system or "", (job.asks_by or ["prompt"])[0]: asked,
             "choices": max(job.choices, key=len, default="")}  # fmt: skip
    flag = max(given, key=lambda name: len(given[name]))
    text = given[flag] if len(given[flag]) <= 40 else f"{given[flag][:40]}…"
    return UsageError(
        f"{flag_name(flag)} {text!r}: with one image the prompt takes {prompt} tokens, and the model has "
        f"{most} positions, for its answer with it; shorten it"
    )
