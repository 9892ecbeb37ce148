"""Results on their way from the device to the host: whose they are, and when they are there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llava_batch.engine.device import to_host
from llava_batch.engine.sequence import Sequence


@dataclass(frozen=True, kw_only=True, eq=False)
class Flight:
    """One token and one score for each sequence, on the host once `ready` has come to pass.

    turns: each sequence's turn when it departed; what arrives for a sequence that has gone on to
    another turn, or has left its slot, is of no use.
    """

    sequences: list[Sequence]
    turns: list[int]
    rows: list[int]
    tokens: torch.Tensor
    scores: torch.Tensor
    ready: torch.cuda.Event | None

    @classmethod
    def depart(
        cls,
        sequences: list[Sequence],
        rows: list[int],
        tokens: torch.Tensor,
        scores: torch.Tensor,
    ) -> "Flight":
        """Send int64 and float `[N]` to the host; row `rows[i]` is the i-th sequence's."""
        ready = None
        if tokens.is_cuda:
            tokens, scores = to_host(tokens), to_host(scores)
            ready = torch.cuda.Event(blocking=True)  # waiting must not cost a core
            ready.record()
        else:
            tokens, scores = tokens.clone(), scores.clone()
        return cls(
            sequences=sequences,
            turns=[sequence.turn for sequence in sequences],
            rows=rows,
            tokens=tokens,
            scores=scores,
            ready=ready,
        )

    def expect(self) -> None:
        """From here on each sequence has one token more in flight."""
        for sequence in self.sequences:
            sequence.in_flight += 1

    def land(self) -> Iterator[tuple[Sequence, int, float]]:
        """Wait, then give every sequence that still wants it its token and score."""
        if self.ready is not None:
            self.ready.synchronize()
        tokens, scores = self.tokens.tolist(), self.scores.tolist()
        for sequence, turn, row in zip(self.sequences, self.turns, self.rows, strict=True):
            if sequence.slot >= 0 and sequence.turn == turn:
                sequence.in_flight -= 1
                yield sequence, tokens[row], scores[row]
