"""Completions: what lands for a sequence becomes its answer; what has ended waits to be handed out.

A sequence leaves its slot here and nowhere else but in a back-off. Plain Python; no tensor but the cache's.
"""

import math

from llava_batch.engine.cache import SlotCache
from llava_batch.engine.ending import Decode, Ending, answered, ending, failed
from llava_batch.engine.readback import Flight
from llava_batch.engine.request import Completion, Request
from llava_batch.engine.scheduler import Scheduler
from llava_batch.engine.sequence import Ballot, Sequence
from llava_batch.engine.stats import Stats
from llava_batch.engine.validate import errors

NON_FINITE = "the model's scores for this row are not finite; try another dtype"


class Completions:
    """The answers on their way out of one engine."""

    def __init__(
        self,
        scheduler: Scheduler,
        cache: SlotCache,
        stats: Stats,
        end_tokens: frozenset[int],
        decode: Decode | None,
    ) -> None:
        self._scheduler, self._cache, self._stats = scheduler, cache, stats
        self._end_tokens, self._decode = end_tokens, decode
        self._done: list[Completion] = []

    def __bool__(self) -> bool:
        """Whether any waits to be handed out."""
        return bool(self._done)

    def hand_out(self) -> list[Completion]:
        """What has ended since the last time."""
        done, self._done = self._done, []
        self._stats.completions += len(done)
        self._stats.errors += sum(completion.finish_reason == "error" for completion in done)
        return done

    def refuse(self, request: Request, code: str, message: str) -> None:
        """A request that gets no slot: as many completions in error as it would have had answers."""
        self._done += errors(request, code, message)

    def take(self, flight: Flight) -> None:
        """Take in what a flight brings, and end what has come to its end."""
        landed = 0
        for sequence, token, score in flight.land():
            landed += 1
            if not math.isfinite(score):
                self.fail([sequence], "non_finite", NON_FINITE)
            elif sequence.ballot is not None:
                self._vote(sequence, sequence.ballot, score)
            else:
                self._extend(sequence, token, score)
        self._stats.tokens_wasted += len(flight.sequences) - landed

    def fail(self, group: list[Sequence], code: str, message: str) -> None:
        """End sequences in error: the current turn and those that were still to come."""
        for sequence in group:
            # What is not finite must not stay: masked keys are multiplied by zero, not left out.
            self._cache.clear(sequence.slot, sequence.width)
            self._scheduler.forget(sequence.slot)
            self._scheduler.release(sequence)
            if sequence.ballot is not None and not sequence.ballot.close():
                continue
            self._done += failed(sequence, code, message)

    def _extend(self, sequence: Sequence, token: int, logprob: float) -> None:
        """Append an answer's next token."""
        sequence.append(token, logprob)
        end = ending(sequence, self._end_tokens, self._decode)
        if end is not None:
            self._finish(sequence, end)

    def _finish(self, sequence: Sequence, end: Ending) -> None:
        """The current turn's answer is complete; go on to the next turn or leave the slot."""
        sequence.cut(end.num_tokens)
        self._done.append(answered(sequence, end))
        if not sequence.next_turn():
            self._scheduler.release(sequence)

    def _vote(self, sequence: Sequence, ballot: Ballot, score: float) -> None:
        """A choice has been scored."""
        self._scheduler.release(sequence)
        completion = ballot.add(sequence.choice, score)
        if completion is not None:
            self._done.append(completion)
