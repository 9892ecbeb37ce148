"""An image in its own shape → whole patches of it, as transformers' PixtralImageProcessor on its PIL backend.

The image is made smaller until it fits, never larger but to whole patches. Nothing larger than the limit
is allocated, whatever the image's size.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from llava_batch.errors import RowError
from llava_batch.prepare.pixels import BadImage


@dataclass(frozen=True, kw_only=True)
class OwnShape:
    """most: pixels along (height, width) at most. patch: pixels along a patch's side."""

    most: tuple[int, int]
    patch: int
    resample: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) behind the resize; 0 where an image is too thin for a pixel."""
        ratio = max(height / self.most[0], width / self.most[1])
        if ratio > 1:
            height, width = int(height / ratio), int(width / ratio)
        return -(-height // self.patch) * self.patch, -(-width // self.patch) * self.patch

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 `[3, H, W]`.

        Raises:
            BadImage: `image_unreadable`, where no pixel of its width or height is left.
        """
        height, width = self.size(image.height, image.width)
        if not height or not width:
            raise BadImage(
                RowError.IMAGE_UNREADABLE,
                f"{image.width}x{image.height} is too thin: within {self.most[1]}x{self.most[0]} no pixel is left",
            )
        resized = np.asarray(image.resize((width, height), self.resample), dtype=np.uint8)
        return np.ascontiguousarray(resized.transpose(2, 0, 1))
