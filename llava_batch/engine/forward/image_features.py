"""Image features: every image is encoded once, several together, and kept for those that share it.

Budgets are counted in the patches that go through the tower and in image tokens, never in images, which
may have any number of either. Legend: T tokens of an image, C hidden size.
"""

import logging
from bisect import bisect_left
from collections import OrderedDict

import torch

from llava_batch.engine.model.llava import Llava
from llava_batch.engine.request import Image
from llava_batch.engine.sequence import Sequence, images_between
from llava_batch.engine.stats import Stats
from llava_batch.engine.validate import images_of
from llava_batch.engine.views import joined

log = logging.getLogger(__name__)

MIN_KEPT_TILES = 16
"""So many tiles' features are kept for requests that share an image but not the text before it."""

Group = list[Sequence]


class Encoder:
    """The vision tower over the images of groups that are about to be prefilled."""

    def __init__(self, llava: Llava, stats: Stats, *, max_patches: int, reuse: bool) -> None:
        """max_patches: encoded ahead of need at most, and of the tower at once, unless a tile has more."""
        self.llava, self.stats = llava, stats
        self.max_patches = max_patches
        self.max_kept = MIN_KEPT_TILES * llava.vision.features_per_tile if reuse else 0
        """Image tokens whose features are kept."""
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    @property
    def num_features(self) -> int:
        """Images whose features are held."""
        return len(self._features)

    def ahead(self, groups: list[Group]) -> None:
        """Encode what the first group lacks, and with it what of the next ones fits the budget."""
        chosen: dict[bytes, Image] = {}
        for group in groups:
            missing = self._missing(group)
            if chosen and self._num_patches(chosen | missing) > self.max_patches:
                break
            chosen |= missing
            if not chosen:  # the group at hand has all it needs: nothing is done ahead of need
                return
        self.trim()
        self._encode(chosen)

    def features(self, group: Group) -> torch.Tensor | None:
        """The features `[n, C]` for the pending image tokens of a group, row behind row."""
        missing = self._missing(group)
        if missing:
            self._encode(missing)
        spans = [self._span(sequence) for sequence in group]
        found = [
            self._of_span(sequence, *span)
            for sequence, span in zip(group, spans, strict=True)
            if span[1] > span[0]
        ]
        return joined(found) if found else None

    def trim(self) -> None:
        """Let go of all but the last few that were used."""
        num_tokens = sum(map(len, self._features.values()))
        while num_tokens > self.max_kept:
            num_tokens -= len(self._features.popitem(last=False)[1])

    def back_off(self, error: Exception) -> None:
        """Fewer patches together from now on."""
        self.max_patches = max(1, self.max_patches // 2)
        self.stats.memory_backoffs += 1
        log.warning(
            "out of memory in the vision tower, now %d patches: %s", self.max_patches, error
        )

    def _num_patches(self, images: dict[bytes, Image]) -> int:
        return sum(map(self.llava.vision.num_patches, images.values()))

    def _encode(self, missing: dict[bytes, Image]) -> None:
        if not missing:
            return
        vision, most = self.llava.vision, self.max_patches
        if self.llava.device.type == "cpu":  # all that was chosen, an image's tiles together
            most = self._num_patches(missing)
        found = vision.encode(list(missing.values()), most_patches=most)
        for key, feature in zip(missing, found, strict=True):
            # Each of its own: one that is kept must not keep the memory of all.
            self._features[key] = feature.clone()
        self.stats.images_encoded += len(missing)

    def _missing(self, group: Group) -> dict[bytes, Image]:
        """Pending images that are not encoded yet, by fingerprint."""
        missing: dict[bytes, Image] = {}
        for sequence in group:
            for number in images_between(sequence.image_ends, *self._span(sequence)):
                key = sequence.images[number]
                if key not in self._features and key not in missing:
                    missing[key] = images_of(sequence.request)[number]
        return missing

    def _span(self, sequence: Sequence) -> tuple[int, int]:
        """Pending image tokens, counted through all of the sequence's images: [begin, end)."""
        return bisect_left(sequence.image_places, sequence.num_cached), len(sequence.image_places)

    def _of_span(self, sequence: Sequence, begin: int, end: int) -> torch.Tensor:
        numbers = images_between(sequence.image_ends, begin, end)
        for number in numbers:
            self._features.move_to_end(sequence.images[number])
        together = joined([self._features[sequence.images[number]] for number in numbers])
        first = ([0, *sequence.image_ends])[numbers[0]]
        return together[begin - first : end - first]
