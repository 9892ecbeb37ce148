"""What a request must satisfy before it may have a slot; a failure is that request's own."""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from llava_batch.engine.request import Completion, Request, as_ids
from llava_batch.engine.sequence import longest

if TYPE_CHECKING:
    from llava_batch.engine.model.llava import Llava


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the model and the cache can take. max_tokens: of one request, by the model's positions or what
    the engine was loaded with; cache_tokens: of all slots together."""

    max_tokens: int
    cache_tokens: int
    vocab_size: int
    image_token: int
    tokens_per_image: int
    image_size: int
    can_decode: bool

    @classmethod
    def of(
        cls, llava: "Llava", *, max_tokens: int, cache_tokens: int, can_decode: bool
    ) -> "Limits":
        """Those of a model."""
        return cls(
            max_tokens=max_tokens,
            cache_tokens=cache_tokens,
            vocab_size=llava.vocab_size,
            image_token=llava.image_token,
            tokens_per_image=llava.tokens_per_image,
            image_size=llava.image_size,
            can_decode=can_decode,
        )


def why_not(request: Request, limits: Limits) -> tuple[str, str] | None:
    """Error code and message for a request that cannot be answered, or None."""
    wrong = request.why_not()
    if wrong is not None:
        return "bad_prompt", wrong
    if any(isinstance(stop, str) for stop in request.stop) and not limits.can_decode:
        return "bad_prompt", "stop strings need an engine with `decode`; give token sequences"
    prompt = as_ids(request.prompt_ids)
    turns = [as_ids(turn) for turn in request.turns]
    if not prompt or not all(turns):
        return "bad_prompt", "a prompt has no tokens"
    wrong = why_not_ids([prompt, *turns, *map(list, request.choices)], limits)
    wrong = wrong or why_not_pixels(request, [*prompt, *chain(*turns)], limits)
    if wrong is not None:
        return "bad_prompt", wrong
    return why_not_length(longest(request, prompt, turns), limits)


def why_not_length(needed: int, limits: Limits) -> tuple[str, str] | None:
    """More tokens than the model has positions for, or than there is memory for."""
    if needed > limits.max_tokens:
        return "prompt_too_long", (
            f"prompt and answer may take {needed} tokens, the limit is {limits.max_tokens}: the "
            "model's positions, or the engine's max_tokens; shorten the prompt or lower max_new_tokens"
        )
    if needed > limits.cache_tokens:
        return "out_of_memory", (
            f"prompt and answer may take {needed} tokens, there is memory for {limits.cache_tokens}; "
            "shorten the prompt, lower max_new_tokens or give more slots"
        )
    return None


def why_not_ids(parts: list[list[int]], limits: Limits) -> str | None:
    """A token id that the vocabulary does not have."""
    for ids in parts:
        low, high = min(ids), max(ids)
        if low < 0 or (high >= limits.vocab_size and high != limits.image_token):
            wrong = low if low < 0 else high
            return f"token id {wrong} is not in the vocabulary of {limits.vocab_size}"
    return None


def why_not_pixels(request: Request, ids: list[int], limits: Limits) -> str | None:
    """Pixels of the wrong kind, or a number of image tokens that does not fit them."""
    num_images = 0
    if request.pixels is not None:
        shape = tuple(request.pixels.shape)
        expected = (3, limits.image_size, limits.image_size)
        if shape[1:] != expected or len(shape) != 4 or "uint8" not in str(request.pixels.dtype):
            return f"pixels are {request.pixels.dtype} {shape}, must be uint8 {('N', *expected)}"
        num_images = shape[0]
    found, needed = ids.count(limits.image_token), num_images * limits.tokens_per_image
    if found != needed:
        return (
            f"the prompt has {found} image tokens, {num_images} images need {needed} "
            f"({limits.tokens_per_image} each)"
        )
    return None


def images_of(request: Request) -> np.ndarray:
    """The request's pixels as a numpy array `[N, 3, H, W]`; N is 0 without an image."""
    if request.pixels is None:
        return np.empty((0, 3, 0, 0), dtype=np.uint8)
    return np.asarray(request.pixels)


def errors(request: Request, code: str, message: str) -> list[Completion]:
    """A refused request's completions: as many as its answers would have been."""
    return [
        Completion(
            id=request.id,
            turn=turn,
            sample=sample,
            finish_reason="error",
            error_code=code,
            error=message,
        )
        for sample in range(request.num_samples)
        for turn in range(1 + len(request.turns))
    ]
