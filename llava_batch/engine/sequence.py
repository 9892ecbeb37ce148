"""One answer on its way: a sample of a request, from the queue to its last completion.

State is a few integers: `ids[:num_cached]` are in the slot's K/V cache, `ids[num_cached:]` are still
to be fed, `ids[answer_start:]` is the current turn's answer. One pending token means decode; more, or
an image's, mean prefill. `in_flight` tokens more have been picked on the device and not been read by the host; with
some in flight none is pending. A request that is to choose has a sequence for each choice, and they share
a ballot. Plain Python and numpy.
"""

import hashlib
import math
from bisect import bisect_right
from collections import deque
from dataclasses import astuple, dataclass, field
from itertools import accumulate

import numpy as np

from llava_batch.engine.request import Completion, Image, Request, as_ids


@dataclass(eq=False, kw_only=True)
class Ballot:
    """The scores of one request's choices, as they come in."""

    request: Request
    scores: dict[int, float] = field(default_factory=dict)
    closed: bool = False

    def close(self) -> bool:
        """No completion from here on; False if that was so already."""
        was_open, self.closed = not self.closed, True
        return was_open

    def add(self, choice: int, score: float) -> Completion | None:
        """Note a score; the last one brings the completion, unless one choice ended in error."""
        self.scores[choice] = score
        if self.closed or len(self.scores) < len(self.request.choices):
            return None
        best = max(self.scores, key=lambda number: (self.scores[number], -number))
        top = self.scores[best]
        # Exactly rounded: the scores stand in the order in which they came.
        total = math.fsum(math.exp(score - top) for score in self.scores.values())
        tokens = self.request.choices[best]
        return Completion(
            id=self.request.id,
            token_ids=tuple(tokens),
            finish_reason="stop",
            mean_logprob=top / len(tokens),
            choice=best,
            probability=1 / total,
        )


@dataclass(eq=False, kw_only=True)
class Sequence:
    """A sample of `request`; identity is the object's."""

    request: Request
    sample: int
    ids: list[int]
    turns: list[list[int]]
    prefix: np.ndarray
    """int64 [P]: the prompt's ids, an image's tokens replaced by its fingerprint (negative)."""
    images: list[bytes]
    """Fingerprint of each image, in the order of their tokens in the prompts."""
    image_ends: list[int]
    """Of all image tokens of the prompts, how many there are up to the end of each image."""
    image_token: int
    image_places: list[int]
    """Where in `ids` the prompts' image tokens stand (an answer may hold one that is none)."""
    max_tokens: int
    """What its slots must hold at most: all prompts, and every answer at its limit."""
    choice: int = -1
    """Number of the choice that this sequence scores; it then has a `ballot`."""
    ballot: Ballot | None = None
    prompt_len: int = 0
    """Length of the first prompt; what follows it in `ids` at the start is the choice."""
    slot: int = -1
    """Its first slot; it has `width` adjacent ones."""
    width: int = 1
    origin: int = -1
    """A slot that holds the same `num_shared` first tokens as long as nothing else comes there; -1: none."""
    num_shared: int = 0
    num_cached: int = 0
    turn: int = 0
    answer_start: int = 0
    logprobs: list[float] = field(default_factory=list)
    rng: np.random.Generator | None = None
    in_flight: int = 0
    points: deque[float] = field(default_factory=deque)
    """Drawn from `rng` ahead of the tokens that they are for."""

    @property
    def pending(self) -> list[int]:
        """Tokens whose K/V is not in the slot yet."""
        return self.ids[self.num_cached :]

    @property
    def num_pending(self) -> int:
        """How many tokens are still to be fed."""
        return len(self.ids) - self.num_cached

    @property
    def answer(self) -> list[int]:
        """The current turn's tokens so far."""
        return self.ids[self.answer_start :]

    @property
    def num_answered(self) -> int:
        """How many tokens the current turn's answer has so far."""
        return len(self.ids) - self.answer_start

    @property
    def num_picked(self) -> int:
        """How many tokens the current turn's answer will have once all in flight have landed."""
        return self.num_answered + self.in_flight

    @property
    def needs_prefill(self) -> bool:
        """Whether what is pending is more than a decode step feeds: that knows no image's features."""
        last_image = self.image_places[-1] if self.image_places else -1
        return self.num_pending > 1 or self.num_cached <= last_image

    @property
    def can_decode(self) -> bool:
        """Whether it wants a decode step: not if what is in flight brings it to its end."""
        if self.needs_prefill:
            return False
        if self.ballot is not None:
            return self.num_pending == 1
        return self.num_picked < self.request.max_new_tokens

    @property
    def num_scores(self) -> int:
        """How many of the last pending positions need logits: one, or one per choice token."""
        return 1 if self.choice < 0 else len(self.ids) - self.prompt_len + 1

    def next_point(self) -> float:
        """The random number in [0, 1) for the token that is picked next.

        The n-th token of a sample has the n-th number, also where tokens picked ahead were given up.
        """
        while len(self.points) <= self.in_flight:
            assert self.rng is not None, "a greedy sequence draws nothing"
            self.points.append(self.rng.random())
        return self.points[self.in_flight]

    def append(self, token: int, logprob: float) -> None:
        """Take the answer's next token, which has landed."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if self.points:
            self.points.popleft()

    def next_turn(self) -> bool:
        """Append the next turn's prompt behind the answer; False when there is none.

        What is still in flight was picked for the answer that has ended, and is given up.
        """
        self.in_flight = 0
        if self.turn == len(self.turns):
            return False
        turn = self.turns[self.turn]
        self.image_places += places(turn, self.image_token, start=len(self.ids))
        self.ids += turn
        self.turn += 1
        self.answer_start = len(self.ids)
        self.logprobs = []
        return True

    def cut(self, num_answered: int) -> None:
        """Drop the answer's tokens behind the first `num_answered`; their K/V is given up."""
        del self.ids[self.answer_start + num_answered :]
        del self.logprobs[num_answered:]
        self.num_cached = min(self.num_cached, len(self.ids))


def generator(request: Request, sample: int) -> np.random.Generator | None:
    """The sample's own stream of random numbers, fixed by (seed, id, sample); None if greedy."""
    if request.temperature == 0:
        return None
    text = f"{request.seed}\0{request.id}\0{sample}".encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


def fingerprint(image: Image) -> bytes:
    """What two equal images have in common: a digest of their pixels, their size and their grid.

    SHA-256, for which processors have instructions: a third of a millisecond for 336 x 336 pixels.
    """
    digest = hashlib.sha256(np.ascontiguousarray(image.pixels).data)
    grid = () if image.grid is None else astuple(image.grid)
    digest.update(repr((image.pixels.shape, grid)).encode())
    return digest.digest()


def images_between(ends: list[int], begin: int, end: int) -> range:
    """Numbers of the images that the image tokens [begin, end) belong to; see `Sequence.image_ends`."""
    if end <= begin:
        return range(0)
    return range(bisect_right(ends, begin), bisect_right(ends, end - 1) + 1)


def places(ids: list[int], token: int, start: int = 0) -> list[int]:
    """Where `token` stands in `ids`, the first of which has the number `start`."""
    return [place for place, other in enumerate(ids, start) if other == token]


def prefix_key(
    ids: list[int], images: list[bytes], image_token: int, ends: list[int]
) -> np.ndarray:
    """The ids as int64 [P], image tokens replaced by a negative number made from their image."""
    key = np.asarray(ids, dtype=np.int64)
    (found,) = np.nonzero(key == image_token)
    for image, begin, end in zip(images, [0, *ends], ends, strict=False):
        key[found[begin:end]] = -1 - (int.from_bytes(image[:8], "little") >> 1)
    return key


def sequences(
    request: Request, images: list[bytes], image_token: int, counts: list[int]
) -> list[Sequence]:
    """One sequence for each sample, or for each choice, of a request that has been checked.

    images, counts: fingerprint and image tokens of each image.
    """
    prompt = as_ids(request.prompt_ids)
    turns = [as_ids(turn) for turn in request.turns]
    tails: list[list[int]] = [[] for _ in range(request.num_samples)]
    if request.choices:
        # The last token of a choice is only scored, never fed.
        tails = [list(choice[:-1]) for choice in request.choices]
    ends = list(accumulate(counts))
    prefix = prefix_key(prompt, images, image_token, ends)
    ballot = Ballot(request=request) if request.choices else None
    made = []
    for number, tail in enumerate(tails):
        made.append(
            Sequence(
                request=request,
                sample=0 if request.choices else number,
                choice=number if request.choices else -1,
                ballot=ballot,
                ids=prompt + tail,
                turns=turns,
                prefix=np.concatenate([prefix, np.asarray(tail, dtype=np.int64)]),
                images=images,
                image_ends=ends,
                image_token=image_token,
                image_places=places(prompt, image_token),
                max_tokens=longest(request, prompt, turns),
                prompt_len=len(prompt),
                answer_start=len(prompt),
                rng=generator(request, number),
            )
        )
    return made


def longest(request: Request, prompt: list[int], turns: list[list[int]]) -> int:
    """Tokens that the request may come to hold in its slot, all turns at their limit."""
    if request.choices:
        return len(prompt) + max(len(choice) for choice in request.choices)
    prompts = len(prompt) + sum(len(turn) for turn in turns)
    return prompts + (1 + len(turns)) * request.max_new_tokens
