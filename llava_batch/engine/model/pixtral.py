"""LLaVA with Pixtral's tower: an image keeps its shape, and has a feature for each of its patches.

The tower takes one image at a time: several in one pass would be one sequence under a mask of all their
patches squared. Legend: as in `vision`; H, W multiples of the patch.
"""

from typing import Any

import numpy as np
import torch

from llava_batch.engine.device import on_device
from llava_batch.engine.model.vision import Vision
from llava_batch.engine.request import Image


class Pixtral(Vision):
    """Images `[1, 3, H, W]` of any size up to the tower's positions."""

    def attention(self, name: str) -> str:
        """Flash attention would have transformers send each image's length to the card, and wait."""
        return "sdpa"

    @property
    def patch(self) -> int:
        """Pixels along a patch's side."""
        size: int = self.config.vision_config.patch_size
        return size

    def why_not_tiles(self, pixels: Any) -> str | None:
        """A size that is not the tower's."""
        shape = tuple(pixels.shape)
        sound = len(shape) == 4 and shape[1] == 3 and "uint8" in str(pixels.dtype)
        most, patch = self.image_size // self.patch * self.patch, self.patch
        if sound and all(0 < length <= most and length % patch == 0 for length in shape[2:]):
            return None
        return (
            f"pixels are {pixels.dtype} {shape}, must be uint8 (1, 3, H, W), H and W multiples of "
            f"{patch} up to {most}"
        )

    def num_tokens(self, image: Image) -> int:
        """A feature for each patch."""
        height, width = image.pixels.shape[2:]
        return int(height // self.patch) * int(width // self.patch)

    def num_patches(self, image: Image) -> int:
        """As many."""
        return self.num_tokens(image)

    def encode(self, images: list[Image], *, most_patches: int) -> list[torch.Tensor]:
        """Features `[T, C]` of each image, one pass of the tower for each, whatever `most_patches` is."""
        # Copies: what comes from a table may not be written to, which torch warns of.
        sent = (on_device(np.array(image.pixels), self.device) for image in images)
        return [self.features(pixels)[0] for pixels in sent]
