"""What a request must satisfy before it may have a slot; a failure is that request's own."""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from llava_batch.engine.request import Completion, Image, Request, as_ids
from llava_batch.engine.sequence import longest

if TYPE_CHECKING:
    from llava_batch.engine.model.llava import Llava
    from llava_batch.engine.model.vision import Vision


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the model and the cache can take. max_tokens: of one request, by the model's positions or what
    the engine was loaded with; cache_tokens: of all slots together."""

    max_tokens: int
    cache_tokens: int
    vocab_size: int
    image_token: int
    vision: "Vision"
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
            vision=llava.vision,
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
    try:
        images = images_of(request)
    except (TypeError, ValueError) as error:
        return f"pixels are no images: {error}"
    wrong = next(filter(None, map(limits.vision.why_not, images)), None)
    if wrong is not None:
        return wrong
    counts = [limits.vision.num_tokens(image) for image in images]
    found, needed = ids.count(limits.image_token), sum(counts)
    if found != needed:
        each = "" if not counts else f" ({', '.join(map(str, dict.fromkeys(counts)))} each)"
        return f"the prompt has {found} image tokens, {len(images)} images need {needed}{each}"
    return None


def images_of(request: Request) -> list[Image]:
    """The request's images, with their pixels as numpy arrays."""
    pixels = request.pixels
    if pixels is None:
        return []
    if isinstance(pixels, tuple):
        return [Image(np.asarray(image.pixels), image.grid) for image in pixels]
    return [Image(one[None]) for one in np.asarray(pixels)]


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
