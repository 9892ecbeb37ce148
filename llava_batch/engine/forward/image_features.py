"""Image features: every image is encoded once, several together, and kept for those that share it.

Legend: N images, T tokens an image, C hidden size.
"""

import logging
from bisect import bisect_left
from collections import OrderedDict

import numpy as np
import torch

from llava_batch.engine.device import on_device
from llava_batch.engine.model.llava import Llava
from llava_batch.engine.sequence import Sequence
from llava_batch.engine.stats import Stats
from llava_batch.engine.validate import images_of

log = logging.getLogger(__name__)

MIN_KEPT_FEATURES = 16
"""Image features kept for requests that share an image but not the text before it."""

Group = list[Sequence]


class Encoder:
    """The vision tower over the images of groups that are about to be prefilled."""

    def __init__(self, llava: Llava, stats: Stats, *, max_images: int, reuse: bool) -> None:
        """max_images: encoded together at most, unless the next group alone has more."""
        self.llava, self.stats = llava, stats
        self.max_images = max_images
        self.num_kept = MIN_KEPT_FEATURES if reuse else 0
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    @property
    def num_features(self) -> int:
        """Images whose features are held."""
        return len(self._features)

    def ahead(self, groups: list[Group]) -> None:
        """Encode what the first group lacks, and with it what of the next ones fits the budget."""
        chosen: dict[bytes, np.ndarray] = {}
        for group in groups:
            missing = self._missing(group)
            new = [key for key in missing if key not in chosen]
            if chosen and len(chosen) + len(new) > self.max_images:
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
        return torch.cat(found) if found else None

    def trim(self) -> None:
        """Let go of all but the last few that were used."""
        while len(self._features) > self.num_kept:
            self._features.popitem(last=False)

    def back_off(self, error: Exception) -> None:
        """Fewer images together from now on."""
        self.max_images = max(1, self.max_images // 2)
        self.stats.memory_backoffs += 1
        log.warning("out of memory in the vision tower, now %d images: %s", self.max_images, error)

    def _encode(self, missing: dict[bytes, np.ndarray]) -> None:
        if not missing:
            return
        pixels = on_device(np.stack(list(missing.values())), self.llava.device)
        for key, feature in zip(missing, self.llava.encode(pixels), strict=True):
            # Each of its own: one that is kept must not keep the memory of all.
            self._features[key] = feature.clone()
        self.stats.images_encoded += len(missing)

    def _missing(self, group: Group) -> dict[bytes, np.ndarray]:
        """Pending images that are not encoded yet, by fingerprint."""
        missing: dict[bytes, np.ndarray] = {}
        for sequence in group:
            for number in self._images(*self._span(sequence)):
                key = sequence.images[number]
                if key not in self._features and key not in missing:
                    missing[key] = images_of(sequence.request)[number]
        return missing

    def _span(self, sequence: Sequence) -> tuple[int, int]:
        """Pending image tokens, counted through all of the sequence's images: [begin, end)."""
        return bisect_left(sequence.image_places, sequence.num_cached), len(sequence.image_places)

    def _images(self, begin: int, end: int) -> range:
        """Numbers of the images that the image tokens [begin, end) belong to."""
        per_image = self.llava.tokens_per_image
        return range(begin // per_image, -(-end // per_image)) if end > begin else range(0)

    def _of_span(self, sequence: Sequence, begin: int, end: int) -> torch.Tensor:
        numbers = self._images(begin, end)
        for number in numbers:
            self._features.move_to_end(sequence.images[number])
        together = torch.cat([self._features[sequence.images[number]] for number in numbers])
        first = numbers[0] * self.llava.tokens_per_image
        return together[begin - first : end - first]
