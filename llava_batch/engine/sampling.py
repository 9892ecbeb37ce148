"""From logits to the next token: greedy or sampled, each row by its own rules.

Legend: B rows, V vocabulary. The rules and their order are transformers': repetition penalty,
`min_new_tokens`, the request's own processor, temperature, top-k, top-p. What is drawn is decided by
the row's logits and its own generator alone, never by its neighbours.
"""

import math
from collections.abc import Callable

import torch

from llava_batch.engine.sequence import Sequence

BestToken = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def next_tokens(
    logits: torch.Tensor,
    sequences: list[Sequence],
    end_tokens: frozenset[int],
    best_token: BestToken,
) -> tuple[list[int], list[float]]:
    """Logits `[B, V]` -> each row's next token and its log-probability under the model.

    `best_token` says both for the most likely token. A row whose logits are not finite gets a
    log-probability that is not finite either.
    """
    best, logprobs = best_token(logits)
    chosen, scores = best.tolist(), logprobs.tolist()
    for row, sequence in enumerate(sequences):
        if not is_plain(sequence) and math.isfinite(scores[row]):
            plain = logits[row].float()
            chosen[row] = pick(plain.clone(), sequence, end_tokens)
            scores[row] = float(torch.log_softmax(plain, dim=-1)[chosen[row]])
    return chosen, scores


def is_plain(sequence: Sequence) -> bool:
    """Whether the row's next token is simply the most likely one."""
    request = sequence.request
    return (
        request.temperature == 0
        and request.repetition_penalty == 1
        and request.logits_processor is None
        and sequence.num_answered >= request.min_new_tokens
    )


def pick(logits: torch.Tensor, sequence: Sequence, end_tokens: frozenset[int]) -> int:
    """One row's next token, by all its rules; `logits` `[V]` is the caller's copy."""
    request = sequence.request
    if request.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(sequence.ids)), device=logits.device)
        values = logits[seen]
        penalty = request.repetition_penalty
        logits[seen] = torch.where(values < 0, values * penalty, values / penalty)
    if sequence.num_answered < request.min_new_tokens and end_tokens:
        logits[sorted(end_tokens)] = float("-inf")
    if request.logits_processor is not None:
        logits = request.logits_processor(sequence.answer, logits)
    if sequence.rng is None:
        return int(logits.argmax())
    return draw(logits, request.temperature, request.top_k, request.top_p, sequence.rng.random())


def draw(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, point: float) -> int:
    """Sample by inverting the cumulative distribution at `point`, in [0, 1)."""
    ordered, order = torch.sort(logits / temperature, descending=True, stable=True)
    if top_k:
        ordered = ordered[:top_k]
    probabilities = torch.softmax(ordered.double(), dim=-1)
    total = probabilities.cumsum(dim=-1)
    if top_p < 1:
        # The smallest set whose mass reaches top_p: a token stays if the mass before it is less.
        probabilities = probabilities[total - probabilities < top_p]
        total = probabilities.cumsum(dim=-1)
    place = torch.searchsorted(total, point * float(total[-1]), right=True)
    return int(order[min(int(place), len(probabilities) - 1)])
