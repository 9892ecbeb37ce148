"""Scoring given continuations: collect each choice's log-probability, then say which is likeliest."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from llava_batch.engine.passes import on_device
from llava_batch.engine.request import Completion, Request

if TYPE_CHECKING:
    from llava_batch.engine.sequence import Sequence


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
        total = sum(math.exp(score - top) for score in self.scores.values())
        tokens = self.request.choices[best]
        return Completion(
            id=self.request.id,
            token_ids=tuple(tokens),
            finish_reason="stop",
            mean_logprob=top / len(tokens),
            choice=best,
            probability=1 / total,
        )


def scores(group: "list[tuple[Sequence, torch.Tensor]]") -> torch.Tensor:
    """Log-probability of each sequence's choice, `[N]`, from logits `[K, V]` for its K tokens."""
    results = []
    for sequence, logits in group:
        choice = np.asarray(sequence.request.choices[sequence.choice], dtype=np.int64)
        tokens = on_device(choice, logits.device)[:, None]
        results.append(torch.log_softmax(logits.float(), dim=-1).gather(1, tokens).sum())
    return torch.stack(results)
