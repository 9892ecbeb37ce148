"""Picks: what comes next for each row of a pass, and the flights that bring it to the host.

Whatever finds no memory on the way does so before anything is noted of the rows, so that the same rows,
or fewer, can be fed again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch

from llava_batch.engine.readback import Flight
from llava_batch.engine.sampling import Sampler, Scored, choice_scores
from llava_batch.engine.scheduler import Scheduler
from llava_batch.engine.sequence import Sequence

Keep = Callable[..., None]
"""`Runner.keep`."""


class Picks:
    """Picks for one engine's rows, and those that have not landed yet."""

    def __init__(self, sampler: Sampler, scheduler: Scheduler, keep: Keep | None) -> None:
        """keep: notes tokens on the device, where the next step does not wait for the host."""
        self._sampler, self._scheduler, self._keep = sampler, scheduler, keep
        self._flights: deque[Flight] = deque()

    @property
    def num_up(self) -> int:
        """Flights that have not landed."""
        return len(self._flights)

    def make(self, group: list[Sequence], scored: Scored, *, by_slot: bool) -> int:
        """Choose what comes next, and send it to the host; how many flights that makes."""
        try:
            flights, tokens = pick(group, scored, self._sampler)
            if self._keep is not None:
                self._keep(tokens, group, scored.rows, by_slot=by_slot)
        except RuntimeError:
            self.forget(sequence.slot for sequence in group)
            raise
        # All that was pending is in the slots, or will be before anything else is done there.
        for sequence in group:
            sequence.num_cached = len(sequence.ids) + sequence.in_flight
            self._scheduler.cached(sequence)
        for flight in flights:
            flight.expect()
        self._flights += flights
        return len(flights)

    def landed(self, *, still_up: int) -> Iterator[Flight]:
        """Every flight but the last `still_up`, in the order of their departure."""
        while len(self._flights) > still_up:
            yield self._flights.popleft()

    def forget(self, slots: Iterable[int]) -> None:
        """What these rows were to say next may never be said; see `Sampler.forget`."""
        self._sampler.forget(slots)


def pick(
    group: list[Sequence], scored: Scored, sampler: Sampler
) -> tuple[list[Flight], torch.Tensor]:
    """Send off each answer's next token and each choice's score; the tokens `[N]` are returned too.

    A choice's `num_scores` rows end with its last one, which `scored.rows` names.
    """
    pairs = list(zip(group, scored.rows, strict=True))
    flights = []
    votes = [(s, row) for s, row in pairs if s.ballot is not None]
    if votes:
        results = choice_scores(
            [(s, scored.logits[row + 1 - s.num_scores : row + 1]) for s, row in votes]
        )
        no_tokens = torch.zeros_like(results, dtype=torch.int64)
        voters = [sequence for sequence, _ in votes]
        flights.append(Flight.depart(voters, list(range(len(votes))), no_tokens, results))
    going = [(s, row) for s, row in pairs if s.ballot is None]
    answering, rows = [sequence for sequence, _ in going], [row for _, row in going]
    tokens, logprobs = sampler.pick(scored, answering, rows)
    if going:
        flights.append(Flight.depart(answering, rows, tokens, logprobs))
    return flights, tokens
