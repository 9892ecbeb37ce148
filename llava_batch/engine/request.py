"""What goes into the engine and what comes out: requests and completions, plain data.

A request is one image block with one prompt, or one dialogue; it leaves as one completion for each
turn of each sample, or, when it cannot be answered, as completions in error. Token ids are ints of
the model's vocabulary; nothing here knows a tokenizer or a tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

LogitsProcessor = Callable[[list[int], Any], Any]
"""(token ids of the answer so far, float32 logits [V]) -> float32 logits [V]."""


@runtime_checkable
class Hiding(Protocol):
    """A logits processor that does nothing but hide tokens: those of many rows cost a device one copy, and it
    itself is not called."""

    def __call__(self, answer: list[int], logits: Any) -> Any: ...

    def hidden_tokens(self, answer: list[int], size: int) -> np.ndarray:
        """bool `[V]`: which of `size` tokens cannot follow the answer so far."""
        ...


@dataclass(frozen=True)
class Grid:
    """The tiles behind an image's first, row by row, and which of their features are the image's.

    rows, columns: of tiles. top, bottom, left, right: where the image lies in the grid's features, the
    rest being padding's. height, width: rows and columns of features to which that part is reduced.
    """

    rows: int
    columns: int
    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Image:
    """One image, as its family's processor makes it.

    pixels: uint8 `[t, 3, H, W]`, neither rescaled nor normalised: the image as a whole, and behind it
        the tiles of `grid`, where the family cuts images of any resolution into such.
    """

    pixels: Any
    grid: Grid | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to answer.

    id: comes back in every completion; together with `seed` it decides what is sampled.
    pixels: uint8 `[N, 3, H, W]` (numpy or torch) at the tower's own size, resized but neither
        rescaled nor normalised; a tuple of `Image` where images differ in size or have tiles; None
        for a prompt without an image.
    prompt_ids: the prompt's tokens, every image already expanded to its image tokens.
    turns: the prompts of the further turns of a dialogue. Each is appended right behind the answer
        before it, so it begins with whatever closes an answer (`</s>` for LLaVA-1.5).
    max_new_tokens, min_new_tokens: per turn.
    ignore_eos: the end token is a token like any other, only the limit ends an answer.
    temperature: 0 is greedy; `top_p` 1 and `top_k` 0 switch the two filters off.
    repetition_penalty: over prompt and answer, as in transformers; 1 switches it off.
    stop: strings (the engine then needs `decode`) or token sequences; they end the answer and are
        not part of it.
    num_samples: so many answers, sharing one prefill.
    choices: given continuations. They are scored instead of generated; the completion is the most
        likely one. End each with what ends an answer when one may begin another.
    logits_processor: constrains decoding; called on every step of this request.
    """

    id: str
    pixels: Any = None
    prompt_ids: Any = ()
    turns: tuple[Any, ...] = ()
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str | tuple[int, ...], ...] = ()
    seed: int = 0
    num_samples: int = 1
    choices: tuple[tuple[int, ...], ...] = ()
    logits_processor: LogitsProcessor | None = field(default=None, compare=False)

    def why_not(self) -> str | None:
        """What is wrong with the options, in words, or None."""
        checks = (
            (self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}, must be >= 1"),
            (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                f"min_new_tokens is {self.min_new_tokens}, must be 0..{self.max_new_tokens}",
            ),
            (self.temperature >= 0, f"temperature is {self.temperature}, must be >= 0"),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}, must be in (0, 1]"),
            (self.top_k >= 0, f"top_k is {self.top_k}, must be >= 0 (0: off)"),
            (
                self.repetition_penalty > 0,
                f"repetition_penalty is {self.repetition_penalty}, must be > 0",
            ),
            (self.num_samples >= 1, f"num_samples is {self.num_samples}, must be >= 1"),
            (all(len(s) > 0 for s in self.stop), "a stop sequence is empty"),
            (all(len(c) > 0 for c in self.choices), "a choice has no tokens"),
            (
                not (self.choices and (self.turns or self.num_samples > 1)),
                "choices cannot be combined with turns or num_samples",
            ),
        )
        return next((message for good, message in checks if not good), None)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer: of one turn of one sample of one request.

    token_ids: the answer, without end token, stop sequence or padding; a choice as it was given.
    finish_reason: `stop`, `length` or `error`.
    mean_logprob: mean natural log-probability of `token_ids` under the model itself (before
        temperature, penalty and filters); None for an empty answer and for an error.
    text: set only where stop strings were given: the decoded answer, cut before the stop string
        (which may begin within a token).
    choice, probability: the index of the most likely of `Request.choices`, and its share among them.
    error_code, error: `prompt_too_long`, `bad_prompt`, `out_of_memory` or `non_finite`, and in words.
    """

    id: str
    turn: int = 0
    sample: int = 0
    token_ids: tuple[int, ...] = ()
    finish_reason: str = "stop"
    mean_logprob: float | None = None
    text: str | None = None
    choice: int | None = None
    probability: float | None = None
    error_code: str | None = None
    error: str | None = None


def as_ids(ids: Any) -> list[int]:
    """Token ids as a list of ints; takes lists, tuples, numpy arrays and one-dimensional tensors."""
    return np.asarray(ids, dtype=np.int64).reshape(-1).tolist()
