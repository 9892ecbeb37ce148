"""Device work: sequences in, logits out. The only file that runs the model.

Legend: B rows, Q their left-padded length, T their new tokens in all, C hidden size, V vocabulary, S slots.
Where the kernels are packed (`contract.Kernels`) a prefill is `[1, T]` and a decode step takes a prefix of
the slots; else a prefill is left-padded `[B, Q]` and a decode step takes the rows that are at work.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from llava_batch.engine.cache import SlotCache
from llava_batch.engine.device import is_out_of_memory, on_device
from llava_batch.engine.forward.decode_batch import DecodeBatch
from llava_batch.engine.forward.image_features import Encoder
from llava_batch.engine.forward.prefill_groups import Load, groups
from llava_batch.engine.model.llava import Llava
from llava_batch.engine.model.memory import gathered_share
from llava_batch.engine.model.quantize import is_int8
from llava_batch.engine.model.supported import waits_for_the_device
from llava_batch.engine.passes import Packed, Rows
from llava_batch.engine.sampling import Scored
from llava_batch.engine.sequence import Sequence
from llava_batch.engine.stats import Stats

log = logging.getLogger(__name__)

Take = Callable[[list[Sequence], torch.Tensor], None]
"""Given a prefilled group and its logits `[sum K, V]`; where memory runs out in it nothing has come of it."""


class Runner:
    """Runs prefill groups and decode steps over the slots."""

    def __init__(
        self,
        llava: Llava,
        cache: SlotCache,
        stats: Stats,
        *,
        max_prefill_tokens: int,
        reuse: bool,
        graphs: bool,
    ) -> None:
        self.llava, self.cache, self.stats = llava, cache, stats
        self.max_prefill_tokens = max_prefill_tokens
        share = gathered_share(llava.text_config, llava.dtype)
        self._gathering = share if llava.kernels.gathers else 0.0
        # Ahead of need only on a card, and no more than one group holds: the memory is planned for it.
        together = 1 if llava.device.type == "cpu" else max_prefill_tokens
        self.encoder = Encoder(llava, stats, max_patches=together, reuse=reuse)
        self.batch: DecodeBatch | None = None
        if llava.kernels.packed:
            self.batch = DecodeBatch(llava, cache, stats, graphs=graphs)

    def prefill(self, sequences: list[Sequence], take: Take) -> Iterator[Sequence]:
        """Feed all pending tokens, group by group, each handed to `take`; yields rows without memory.

        Logits are `[sum K, V]`, one row's last K = `num_scores` positions after the other's.
        """
        waiting, budget = self._groups(sequences), self.max_prefill_tokens
        while waiting:
            try:
                self.encoder.ahead(waiting)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.encoder.back_off(error)  # the group encodes its own, or is halved
            yield from self._prefill(waiting.pop(0), take)
            if self.max_prefill_tokens < budget:
                waiting = self._groups([sequence for group in waiting for sequence in group])
                budget = self.max_prefill_tokens
        self.encoder.trim()

    def _groups(self, sequences: list[Sequence]) -> list[list[Sequence]]:
        return groups(
            sequences,
            self.max_prefill_tokens,
            padded=not self.llava.kernels.packed,
            gathering=self._gathering,
        )

    def _prefill(self, group: list[Sequence], take: Take) -> Iterator[Sequence]:
        """One group, halved when memory runs out, as are then the groups to come."""
        try:
            take(group, self._prefill_group(group))
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out of memory in prefill of %d prompts: %s", len(group), error)
            self.stats.memory_backoffs += 1
        if len(group) == 1:
            yield group[0]
            return
        load = Load(self._gathering)
        for sequence in group:
            load = load.plus(sequence, sequence.num_pending)
        self.max_prefill_tokens = min(self.max_prefill_tokens, max(1, load.tokens // 2))
        half = len(group) // 2
        yield from self._prefill(group[:half], take)
        yield from self._prefill(group[half:], take)

    def _prefill_group(self, group: list[Sequence]) -> torch.Tensor:
        """One pass over a group's pending tokens -> logits `[sum K, V]`."""
        features = self.encoder.features(group)
        rows = replace(rows_of(group), scored=max(s.num_scores for s in group))
        shape, ids, positions, places, last = (
            in_a_row(group, rows) if self.llava.kernels.packed else left_padded(group, rows)
        )
        device = self.llava.device
        sent = on_device(np.concatenate([ids, positions, places, last]), device)
        parts = sent.split([len(ids), len(positions), len(places), len(last)])
        embeds = self.llava.embed(parts[0].view(shape))
        if features is not None:
            embeds.view(-1, embeds.shape[-1]).index_copy_(0, parts[2], features)
        work = (
            Packed.of(rows, device, self.cache.slot_tokens) if self.llava.kernels.packed else rows
        )
        hidden = self.llava.forward(embeds, parts[1].view(shape), self.cache, work)
        self.stats.tokens_prefilled += sum(rows.new)
        self.stats.tokens_padded += len(ids) - sum(rows.new)
        return self.llava.logits(hidden.flatten(0, 1).index_select(0, parts[3]))

    def decode(self, sequences: list[Sequence]) -> Scored:
        """Feed the one pending token of every row."""
        if self.batch is not None:
            logits, best, logprobs = self.batch.step(sequences)
            rows = [sequence.slot for sequence in sequences]
            return Scored(logits=logits, best=best, logprobs=logprobs, rows=rows)
        places = rows_of(sequences)
        newest = np.array([[sequence.ids[-1]] for sequence in sequences], dtype=np.int64)
        ids = on_device(newest, self.llava.device)
        _, past = places.places(self.llava.device)
        hidden = self.llava.forward(self.llava.embed(ids), past[:, None], self.cache, places)
        return self.score(self.llava.logits(hidden[:, 0]))

    def keep(
        self, tokens: torch.Tensor, sequences: list[Sequence], rows: list[int], *, by_slot: bool
    ) -> None:
        """Have the next step feed these tokens `[N]`, without asking the host.

        rows: which is whose; with `by_slot` row n is slot n's, as a decode step returns them.
        """
        if self.batch is None:
            raise RuntimeError("only a packed step takes its tokens from the device")
        if by_slot:
            self.batch.keep(tokens)
        else:
            self.batch.keep(tokens, rows, [sequence.slot for sequence in sequences])

    def score(self, logits: torch.Tensor) -> Scored:
        """The most likely token of every row of `[N, V]`, the rows in the sequences' order."""
        best, logprobs = self.llava.kernels.best_token(logits)
        return Scored(logits=logits, best=best, logprobs=logprobs, rows=list(range(len(logits))))


def device_option(name: str, asked: bool | None, llava: Llava) -> bool:
    """Whether `lag` or `graphs` is on: as asked for, by default on CUDA where it can be had.

    Raises:
        ValueError: asked for where it cannot be had.
    """
    found = why_not(name, llava)
    if asked and found:
        raise ValueError(f"{name} cannot be had {found}")
    return llava.device.type == "cuda" and not found if asked is None else asked


def why_not(name: str, llava: Llava) -> str | None:
    """Why `lag` or `graphs` cannot be had for a model where it lies, or None."""
    if not llava.kernels.packed:
        return f"with attention {llava.kernels.name!r}; give sdpa"
    if name == "lag":
        return None
    if llava.device.type != "cuda":
        return f"on {llava.device.type}, they are CUDA's; leave them off"
    if waits_for_the_device(llava.text_config):
        return "with dynamic rotary embeddings, which wait for the device; leave them off"
    if is_int8(llava.config):
        return "with int8 weights, whose outliers wait for the device; leave them off"
    return None


def rows_of(sequences: list[Sequence]) -> Rows:
    """Where each sequence's pending tokens go."""
    return Rows(
        slots=tuple(sequence.slot for sequence in sequences),
        past=tuple(sequence.num_cached for sequence in sequences),
        new=tuple(sequence.num_pending for sequence in sequences),
        widths=tuple(sequence.width for sequence in sequences),
        origins=tuple(s.slot if s.origin < 0 else s.origin for s in sequences),
        shared=tuple(sequence.num_shared for sequence in sequences),
    )


Fed = tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Shape of the pass; flat int64: ids, positions, where image tokens stand, which places are scored."""


def left_padded(group: list[Sequence], rows: Rows) -> Fed:
    """A pass of `[B, Q]`: padding stands on the left, with id 0 and position 0; what is scored stands in `[B, K]`,
    the last K = `rows.scored` places of each row.

    Image tokens have id 0 too, their embedding is replaced anyway.
    """
    shape = (len(group), rows.length)
    ids = np.zeros(shape, dtype=np.int64)
    positions = np.zeros_like(ids)
    places, last = [], []
    for row, sequence in enumerate(group):
        begin = rows.length - rows.new[row]
        ids[row, begin:] = sequence.pending
        positions[row, begin:] = np.arange(rows.past[row], rows.past[row] + rows.new[row])
        found = pending_images(sequence) + begin
        ids[row, found] = 0
        places.append(found + row * rows.length)
        end = (row + 1) * (rows.scored or rows.length)
        last.append(np.arange(end - sequence.num_scores, end))
    return shape, ids.ravel(), positions.ravel(), np.concatenate(places), np.concatenate(last)


def in_a_row(group: list[Sequence], rows: Rows) -> Fed:
    """A pass of `[1, T]`: the rows one behind the other."""
    ids, positions, places, last = [], [], [], []
    end = 0
    for sequence, past, new in zip(group, rows.past, rows.new, strict=True):
        found = pending_images(sequence)
        pending = np.asarray(sequence.pending, dtype=np.int64)
        pending[found] = 0
        ids.append(pending)
        positions.append(np.arange(past, past + new))
        places.append(found + end)
        end += new
        last.append(np.arange(end - sequence.num_scores, end))
    parts = (np.concatenate(part) for part in (ids, positions, places, last))
    return ((1, end), *parts)  # type: ignore[return-value]


def pending_images(sequence: Sequence) -> np.ndarray:
    """int64: where image tokens stand in what is pending, counted from its beginning."""
    first = bisect_left(sequence.image_places, sequence.num_cached)
    return np.asarray(sequence.image_places[first:], dtype=np.int64) - sequence.num_cached
