"""Thumbnails: a small sample of the images, for the report, made where the images are decoded anyway.

Which images: those whose names have the smallest hashes, so the sample is the same in every run and
needs no second reading of the lake. `answers.thumbnails` keeps them beside the answers.
"""

import hashlib
import io
from contextlib import suppress
from typing import Any

from PIL import Image

from llava_batch.workers.shared_state import WAIT_S

SIDE = 256
Thumbnail = tuple[int, str, bytes]
"""(rank: the hash of the name, the image's name, JPEG)."""


def rank_of(name: str) -> int:
    """A number in 0 … 2^63 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


class Thumbnails:
    """One worker's thumbnails, offered to the shared state batch by batch."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared
        self._under: int | None = None
        self._made: list[Thumbnail] = []

    def consider(self, name: str, image: Image.Image) -> None:
        """Make a thumbnail of `image` if it may be among those that are kept."""
        rank = rank_of(name)
        if self._under is not None and rank >= self._under:
            return
        buffer = io.BytesIO()
        _shrunk(image).save(buffer, "JPEG", quality=80)
        self._made.append((rank, name, buffer.getvalue()))

    def hand_in(self) -> None:
        """Offer what was made since the last time."""
        if self._made:
            import ray
            from ray.exceptions import GetTimeoutError

            with suppress(GetTimeoutError):  # pictures of a report: they hold up no row
                self._under = ray.get(self._shared.offer.remote(self._made), timeout=WAIT_S)
            self._made = []


def _shrunk(image: Image.Image) -> Image.Image:
    """Its longer side SIDE at most. The mean of each box takes a third of Pillow's default filter."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return small
