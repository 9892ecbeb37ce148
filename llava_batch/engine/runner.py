"""Device work: sequences in, logits out. The only file that runs the model.

Legend: B rows, Q their left-padded length, C hidden size, T tokens an image, V vocabulary.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch

from llava_batch.engine.cache import Rows, SlotCache
from llava_batch.engine.checks import images_of
from llava_batch.engine.llava import Llava
from llava_batch.engine.sequence import Sequence
from llava_batch.engine.stats import Stats

MIN_KEPT_FEATURES = 16
"""Image features kept for requests that share an image but not the text before it."""

Prefilled = tuple[list[Sequence], torch.Tensor | None]


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
    ) -> None:
        self.llava, self.cache, self.stats = llava, cache, stats
        self.max_prefill_tokens = max_prefill_tokens
        self.num_kept_features = MIN_KEPT_FEATURES if reuse else 0
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def prefill(self, sequences: list[Sequence]) -> Iterator[Prefilled]:
        """Feed all pending tokens, group by group; logits are None for a row that found no memory.

        Logits are `[sum K, V]`, one row's last K = `num_scores` positions after the other's.
        """
        for group in groups(sequences, self.max_prefill_tokens):
            yield from self._prefill(group)

    def _prefill(self, group: list[Sequence]) -> Iterator[Prefilled]:
        """One group, halved when memory runs out."""
        try:
            logits = self._prefill_group(group)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            logits = None
        if logits is not None or len(group) == 1:
            yield group, logits
            return
        half = len(group) // 2
        yield from self._prefill(group[:half])
        yield from self._prefill(group[half:])

    def _prefill_group(self, group: list[Sequence]) -> torch.Tensor:
        rows = rows_of(group)
        features = self._encode(group)
        ids, positions, image_places = left_padded(group, rows)
        embeds = self.llava.embed(torch.from_numpy(ids).to(self.llava.device))
        for row, found in enumerate(features):
            if found is not None:
                embeds[row, torch.from_numpy(image_places[row])] = found
        positions_on_device = torch.from_numpy(positions).to(self.llava.device)
        hidden = self.llava.forward(embeds, positions_on_device, self.cache, rows)
        self.stats.tokens_prefilled += sum(rows.new)
        self.stats.tokens_padded += len(group) * rows.length - sum(rows.new)
        counts = [sequence.num_scores for sequence in group]
        last = torch.cat([hidden[row, -count:] for row, count in enumerate(counts)])
        return self.llava.logits(last)

    def decode(self, sequences: list[Sequence]) -> torch.Tensor:
        """Feed the one pending token of every row -> logits `[B, V]`."""
        rows = rows_of(sequences)
        device = self.llava.device
        ids = torch.tensor([[sequence.ids[-1]] for sequence in sequences], device=device)
        positions = torch.tensor(rows.past, device=device)[:, None]
        hidden = self.llava.forward(self.llava.embed(ids), positions, self.cache, rows)
        self.stats.tokens_decoded += len(sequences)
        return self.llava.logits(hidden[:, 0])

    def _encode(self, group: list[Sequence]) -> list[torch.Tensor | None]:
        """The features `[n, C]` for each row's pending image tokens, every image encoded once."""
        spans = [self._image_span(sequence) for sequence in group]
        missing: dict[bytes, np.ndarray] = {}
        for sequence, (begin, end) in zip(group, spans, strict=True):
            for number in self._images(begin, end):
                key = sequence.images[number]
                if key not in self._features:
                    missing[key] = images_of(sequence.request)[number]
        if missing:
            pixels = torch.from_numpy(np.stack(list(missing.values())))
            encoded = self.llava.encode(pixels)
            self._features.update(zip(missing, encoded, strict=True))
            self.stats.images_encoded += len(missing)
        found = [
            self._span_features(sequence, *span)
            for sequence, span in zip(group, spans, strict=True)
        ]
        while len(self._features) > self.num_kept_features:
            self._features.popitem(last=False)
        return found

    def _image_span(self, sequence: Sequence) -> tuple[int, int]:
        """Pending image tokens, counted through all of the sequence's images: [begin, end)."""
        return bisect_left(sequence.image_places, sequence.num_cached), len(sequence.image_places)

    def _images(self, begin: int, end: int) -> range:
        """Numbers of the images that the image tokens [begin, end) belong to."""
        per_image = self.llava.tokens_per_image
        return range(begin // per_image, -(-end // per_image)) if end > begin else range(0)

    def _span_features(self, sequence: Sequence, begin: int, end: int) -> torch.Tensor | None:
        numbers = self._images(begin, end)
        if not numbers:
            return None
        for number in numbers:
            self._features.move_to_end(sequence.images[number])
        together = torch.cat([self._features[sequence.images[number]] for number in numbers])
        first = numbers[0] * self.llava.tokens_per_image
        return together[begin - first : end - first]


def rows_of(sequences: list[Sequence]) -> Rows:
    """Where each sequence's pending tokens go."""
    return Rows(
        slots=tuple(sequence.slot for sequence in sequences),
        past=tuple(sequence.num_cached for sequence in sequences),
        new=tuple(sequence.num_pending for sequence in sequences),
    )


def groups(sequences: list[Sequence], max_tokens: int) -> list[list[Sequence]]:
    """Sequences of like length together, at most `max_tokens` a group with its padding."""
    made: list[list[Sequence]] = []
    for sequence in sorted(sequences, key=lambda s: s.num_pending, reverse=True):
        # The first of a group is its longest: it sets the padded length.
        if made and made[-1][0].num_pending * (len(made[-1]) + 1) <= max_tokens:
            made[-1].append(sequence)
        else:
            made.append([sequence])
    return made


def left_padded(
    group: list[Sequence], rows: Rows
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Ids and positions int64 `[B, Q]`, and where each row's image tokens stand.

    Padding has id 0 and position 0; image tokens have id 0, their embedding is replaced anyway.
    """
    ids = np.zeros((len(group), rows.length), dtype=np.int64)
    positions = np.zeros_like(ids)
    places = []
    for row, sequence in enumerate(group):
        begin = rows.length - rows.new[row]
        ids[row, begin:] = sequence.pending
        positions[row, begin:] = np.arange(rows.past[row], rows.past[row] + rows.new[row])
        pending = sequence.image_places[bisect_left(sequence.image_places, rows.past[row]) :]
        places.append(np.asarray(pending, dtype=np.int64) - rows.past[row] + begin)
        ids[row, places[-1]] = 0
    return ids, positions, places


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch says that memory ran out, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
