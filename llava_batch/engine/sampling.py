"""From logits to the next token: greedy or sampled, each row by its own rules, on the logits' device.

Legend: B rows, R those of them whose token is not simply the most likely one, V vocabulary. The rules
and their order are transformers': repetition penalty, `min_new_tokens`, the request's own processor,
temperature, top-k, top-p. What is drawn is decided by the row's logits and its own generator alone,
never by its neighbours. Nothing here waits for the device, unless a request's own processor does.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from llava_batch.engine.device import on_device
from llava_batch.engine.draw import draw
from llava_batch.engine.kernels.contract import Draw
from llava_batch.engine.request import Hiding
from llava_batch.engine.sequence import Sequence


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Logits `[N, V]`, each row's most likely token and that token's log-probability `[N]`.

    rows: each sequence's last row, in the sequences' order. The tensors may be a graph's own, overwritten by the
    next step.
    """

    logits: torch.Tensor
    best: torch.Tensor
    logprobs: torch.Tensor
    rows: list[int]


class Sampler:
    """The rules, and which tokens each slot's row has seen."""

    def __init__(
        self,
        end_tokens: frozenset[int],
        num_slots: int,
        device: torch.device,
        draw: Draw = draw,
    ) -> None:
        self._draw_each = draw
        self._ends = on_device(np.array(sorted(end_tokens), dtype=np.int64), device)
        self._device = device
        self._seen: torch.Tensor | None = None
        """bool `[S, V]`, made when a request first has a repetition penalty."""
        self._seen_by: list[tuple[Sequence, int] | None] = [None] * num_slots
        """Whose tokens, and of which turn, a slot's row of `_seen` holds."""

    def forget(self, slots: Iterable[int]) -> None:
        """What the rows there have seen is not to be relied on: what was picked may never be said, and a
        row that left its slot unfinished may come back to it. Nothing may be in flight to them when
        they are asked next."""
        for slot in slots:
            self._seen_by[slot] = None

    def pick(
        self, scored: Scored, sequences: list[Sequence], rows: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every row's next token and its log-probability under the model, `[N]`.

        rows: which row is whose; for the others the token is the most likely one. A row whose logits
        are not finite gets a log-probability that is not finite either.
        """
        special = [(r, s) for r, s in zip(rows, sequences, strict=True) if not is_plain(s)]
        if not special:
            return scored.best, scored.logprobs
        index = self._send([row for row, _ in special])
        plain = scored.logits.index_select(0, index).float()
        chosen = self._choose(plain, [sequence for _, sequence in special])
        scores = torch.log_softmax(plain, dim=-1).gather(1, chosen[:, None])[:, 0]
        best = scored.best.index_copy(0, index, chosen)
        return best, scored.logprobs.index_copy(0, index, scores)

    def _choose(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        """Logits `[R, V]` -> tokens `[R]`."""
        requests = [sequence.request for sequence in sequences]
        penalised = [n for n, request in enumerate(requests) if request.repetition_penalty != 1]
        logits = self._changed(logits, sequences, penalised)
        drawn = [n for n, request in enumerate(requests) if request.temperature > 0]
        if len(drawn) == len(sequences):
            chosen = self._draw(logits, sequences)
        else:
            chosen = logits.argmax(dim=-1)
            if drawn:
                index = self._send(drawn)
                picked = self._draw(logits.index_select(0, index), [sequences[n] for n in drawn])
                chosen = chosen.index_copy(0, index, picked)
        if penalised and self._seen is not None:
            places = self._send([sequences[n].slot * logits.shape[-1] for n in penalised])
            places += chosen.index_select(0, self._send(penalised))
            self._seen.view(-1).index_fill_(0, places, True)
        return chosen

    def _changed(
        self, logits: torch.Tensor, sequences: list[Sequence], penalised: list[int]
    ) -> torch.Tensor:
        """Logits `[R, V]` by the rows' penalties, least lengths and processors; a copy where any has one."""
        banned = [n for n, s in enumerate(sequences) if s.num_picked < s.request.min_new_tokens]
        own = [n for n, s in enumerate(sequences) if s.request.logits_processor is not None]
        if not (penalised or banned or own):
            return logits
        logits = logits.clone()
        if penalised:
            self._penalise(logits, sequences, penalised)
        if banned and len(self._ends):
            index = self._send(banned)
            without = logits.index_select(0, index).index_fill_(1, self._ends, float("-inf"))
            logits.index_copy_(0, index, without)
        self._process(logits, sequences, own)
        return logits

    def _process(self, logits: torch.Tensor, sequences: list[Sequence], rows: list[int]) -> None:
        """Have each row's own processor change it in place; what is only hidden is sent in one copy for all."""
        hidden = {}
        for row in rows:
            sequence = sequences[row]
            processor = sequence.request.logits_processor
            if isinstance(processor, Hiding):
                hidden[row] = processor.hidden_tokens(sequence.answer, logits.shape[-1])
            elif processor is not None:
                logits[row] = processor(sequence.answer, logits[row])
        if hidden:
            index = self._send([*hidden])
            masks = on_device(np.stack([*hidden.values()]), self._device)
            left = logits.index_select(0, index).masked_fill_(masks, float("-inf"))
            logits.index_copy_(0, index, left)

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        rules = np.array(
            [
                (s.request.temperature, s.request.top_k, s.request.top_p, s.next_point())
                for s in sequences
            ],
            dtype=np.float64,
        )
        return self._draw_each(logits, *on_device(np.ascontiguousarray(rules.T), self._device))

    def _penalise(self, logits: torch.Tensor, sequences: list[Sequence], rows: list[int]) -> None:
        """Make what `rows` have seen less likely, in place."""
        if self._seen is None:
            shape = (len(self._seen_by), logits.shape[-1])
            self._seen = torch.zeros(shape, dtype=torch.bool, device=self._device)
        for row in rows:
            self._mark_all(self._seen, sequences[row])
        index = self._send(rows)
        seen = self._seen.index_select(0, self._send([sequences[row].slot for row in rows]))
        penalties = np.array([sequences[row].request.repetition_penalty for row in rows])
        penalty = on_device(penalties.astype(np.float32), self._device)[:, None]
        values = logits.index_select(0, index)
        less = torch.where(values < 0, values * penalty, values / penalty)
        logits.index_copy_(0, index, torch.where(seen, less, values))

    def _mark_all(self, seen: torch.Tensor, sequence: Sequence) -> None:
        """Set a slot's row anew where it holds another sequence's tokens, or an earlier turn's."""
        owner = self._seen_by[sequence.slot]
        if owner is not None and owner[0] is sequence and owner[1] == sequence.turn:
            return
        self._seen_by[sequence.slot] = (sequence, sequence.turn)
        known = np.unique(np.asarray(sequence.ids, dtype=np.int64))
        seen[sequence.slot] = False
        seen[sequence.slot].index_fill_(
            0, on_device(known[known < seen.shape[1]], self._device), True
        )

    def _send(self, numbers: list[int]) -> torch.Tensor:
        return on_device(np.asarray(numbers, dtype=np.int64), self._device)


def is_plain(sequence: Sequence) -> bool:
    """Whether the row's next token is simply the most likely one."""
    request = sequence.request
    return (
        request.temperature == 0
        and request.repetition_penalty == 1
        and request.logits_processor is None
        and sequence.num_picked >= request.min_new_tokens
    )


def choice_scores(group: list[tuple[Sequence, torch.Tensor]]) -> torch.Tensor:
    """Log-probability of each sequence's choice, `[N]`, from logits `[K, V]` for its K tokens."""
    results = []
    for sequence, logits in group:
        choice = np.asarray(sequence.request.choices[sequence.choice], dtype=np.int64)
        tokens = on_device(choice, logits.device)[:, None]
        results.append(torch.log_softmax(logits.float(), dim=-1).gather(1, tokens).sum())
    return torch.stack(results)
