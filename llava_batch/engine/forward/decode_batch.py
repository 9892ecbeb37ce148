"""One decode step over a prefix of the slots, in buffers that stay where they are.

Legend: S slots, b the slots of a bucket, L slot length, V vocabulary. A step works on the slots
`[0, b)` for the smallest bucket b that covers the highest row at work, so that no K/V is gathered; where
the kernel reads every slot up to a common length, that length is a bucket too. A row of several slots is
at work in its first; a step with such a row is a bucket of its own kind, whose length is more than L.
Slots without a row compute on a token that nobody reads. They write it behind the last slot, so that no
prompt that a later request may fork from is touched, and no other slot of a row.

The token sampled in one step feeds the next without passing through the host (`keep`); a token that
only the host knows is handed in. Knows nothing of endings or results in flight.
"""

from bisect import bisect_left

import numpy as np
import torch

from llava_batch.engine.cache import SlotCache
from llava_batch.engine.device import on_device
from llava_batch.engine.forward.cuda_graphs import Graphs, Key, Outputs
from llava_batch.engine.model.llava import Llava
from llava_batch.engine.passes import Prefix
from llava_batch.engine.sequence import Sequence
from llava_batch.engine.stats import Stats

SPAN = 256
"""The shortest bucket of key lengths; each further one is twice as long."""
FROM_DEVICE = -1
"""Stands for the token that the step before sampled."""


class DecodeBatch:
    """Static buffers, buckets, and the step over them, captured in graphs or run as it is."""

    def __init__(self, llava: Llava, cache: SlotCache, stats: Stats, *, graphs: bool) -> None:
        if not llava.kernels.packed:
            raise ValueError(
                f"attention {llava.kernels.name!r} has no decode over a prefix of slots"
            )
        self.llava, self.cache = llava, cache
        num_slots = cache.num_slots
        self.spans = span_buckets(cache.slot_tokens, bucketed=llava.kernels.reads_span)
        self.sizes = slot_buckets(num_slots, few=len(self.spans) > 1)
        self.wide_sizes = slot_buckets(num_slots, few=True)
        self.longest = -(-cache.max_tokens // cache.slot_tokens) * cache.slot_tokens
        """What the longest row's slots hold."""
        self._wide: tuple[tuple[int, int], ...] = ()
        """`Prefix.wide` of the step at hand."""
        self._tokens = torch.zeros(num_slots, dtype=torch.int64, device=llava.device)
        """What each slot's row sampled last."""
        self._places = torch.zeros(4, num_slots, dtype=torch.int64, device=llava.device)
        """Each slot's token or FROM_DEVICE, its position, how many keys it sees, where its keys go."""
        self._graphs = None
        if graphs:
            self._graphs = Graphs(self._run, self._idle, llava.device, stats)
            self._graphs.warm(self.keys)

    def step(self, sequences: list[Sequence]) -> Outputs:
        """Feed every sequence's newest token -> logits `[b, V]`, best tokens and their log-probability.

        Row s is slot s's. The host's places are on their way when this returns, nothing is waited for.
        """
        positions = [len(s.ids) + s.in_flight - 1 for s in sequences]
        pairs = list(zip(sequences, positions, strict=True))
        self._wide = tuple((s.slot, position + 1) for s, position in pairs if s.width > 1)
        sizes, spans = (self.wide_sizes, [self.longest]) if self._wide else (self.sizes, self.spans)
        size, span = (
            bucket(max(s.slot for s in sequences) + 1, sizes),
            bucket(max(positions) + 1, spans),
        )
        places = self._idle_places(size)
        for sequence, position in pairs:
            token = FROM_DEVICE if sequence.in_flight else sequence.ids[-1]
            at = sequence.slot * self.cache.slot_tokens + position
            places[:, sequence.slot] = (token, position, position + 1, at)
        self._places[:, :size].copy_(on_device(places, self.llava.device))
        run = self._run if self._graphs is None else self._graphs.run
        return run((size, span))

    def keep(
        self, tokens: torch.Tensor, rows: list[int] | None = None, slots: list[int] | None = None
    ) -> None:
        """Note tokens `[N]` as what these slots feed next; row n is slot n's if no rows are given."""
        if rows is None or slots is None:
            self._tokens[: len(tokens)].copy_(tokens)
            return
        places = on_device(np.array([rows, slots], dtype=np.int64), self.llava.device)
        self._tokens.index_copy_(0, places[1], tokens.index_select(0, places[0]))

    def _idle_places(self, size: int) -> np.ndarray:
        places = np.zeros((4, size), dtype=np.int64)
        places[2] = 1
        places[3] = self.cache.num_slots * self.cache.slot_tokens
        return places

    def _idle(self, key: Key) -> None:
        """Set the places so that a step changes nothing that is of use."""
        self._places[:, : key[0]].copy_(on_device(self._idle_places(key[0]), self.llava.device))

    def _run(self, key: Key) -> Outputs:
        """The step itself: no shape in it depends on anything but the key."""
        size, span = key
        given, positions, lengths, places = self._places[:, :size]
        tokens = torch.where(given == FROM_DEVICE, self._tokens[:size], given)
        one_slot = self.cache.slot_tokens
        step = Prefix(
            places=places,
            lengths=lengths.int(),
            span=min(span, one_slot),
            window=span if span > one_slot else 0,
            wide=self._wide if span > one_slot else (),
        )
        embeds = self.llava.embed(tokens[:, None])
        hidden = self.llava.forward(embeds, positions[:, None], self.cache, step)
        logits = self.llava.logits(hidden[:, 0])
        return logits, *self.llava.kernels.best_token(logits)

    @property
    def keys(self) -> list[Key]:
        """Every bucket there is, the largest first; those with rows of several slots only where the kernel
        reads each row by its own length: else these go by themselves, which is not captured."""
        found = [(size, span) for size in reversed(self.sizes) for span in reversed(self.spans)]
        if self.longest > self.cache.slot_tokens and not self.llava.kernels.reads_span:
            found = [(size, self.longest) for size in reversed(self.wide_sizes)] + found
        return found


def slot_buckets(num_slots: int, *, few: bool = False) -> list[int]:
    """1, 2, 4, 8, 16, 24, 32, 48, 64, 96 ... up to `num_slots`, which is always one; `few`: each twice
    the one before, since each is captured for every key length, and keeps its logits."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < num_slots:
        power = 1 << (sizes[-1].bit_length() - 1)
        between = not few and power >= 16 and sizes[-1] == power
        sizes.append(power + power // 2 if between else 2 * power)
    return [size for size in sizes if size < num_slots] + [num_slots]


def span_buckets(max_tokens: int, *, bucketed: bool) -> list[int]:
    """SPAN, doubled up to `max_tokens`, which is always one; it alone if not `bucketed`."""
    spans = [SPAN] if bucketed else []
    while spans and spans[-1] < max_tokens:
        spans.append(2 * spans[-1])
    return [span for span in spans if span < max_tokens] + [max_tokens]


def bucket(needed: int, buckets: list[int]) -> int:
    """The smallest bucket that holds `needed`."""
    return buckets[bisect_left(buckets, needed)]
