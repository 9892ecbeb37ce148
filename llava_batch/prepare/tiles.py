"""An image of any resolution → the whole and the tiles of a grid, as transformers' PIL backend makes them.

Everything up to uint8: a grid's padding is black before it is normalised. Nothing is allocated that is
larger than the largest grid, whatever the image's size.
"""

import math

import numpy as np
from PIL import Image

from llava_batch.prepare.image_processor import ImageProcessor
from llava_batch.prepare.pixels import check_canvas, expand_to_square
from llava_batch.prompts.image_tokens import Layout, Tiling


class Tiles:
    """What becomes of an upright RGB image where a model cuts it into tiles."""

    def __init__(self, processor: ImageProcessor, tiling: Tiling) -> None:
        self._resample, self._tiling = processor.resample, tiling
        self._background = processor.background

    def __call__(
        self, image: Image.Image, *, several: bool, most_pixels: int
    ) -> tuple[np.ndarray, Layout | None]:
        """uint8 `[1 + tiles, 3, S, S]`, and the grid that the tiles behind the first lie in.

        several: the image is not alone in its prompt, where LLaVA-OneVision shows it whole, on a square of
        the mean colour.

        Raises:
            BadImage: `image_too_large`, where that square would have more than `most_pixels`.
        """
        side = self._tiling.side
        if several and self._tiling.whole_if_several:
            check_canvas(*image.size, True, None, most_pixels)
            square = expand_to_square(image, self._background)
            alone = np.asarray(square.resize((side, side), self._resample), dtype=np.uint8)
            return np.ascontiguousarray(alone.transpose(2, 0, 1))[None], None
        layout = self._tiling.layout(image.height, image.width)
        canvas = self._canvas(image, layout.rows * side, layout.columns * side)
        whole = np.asarray(image.resize((side, side), self._resample), dtype=np.uint8)
        tiles = canvas.reshape(layout.rows, side, layout.columns, side, 3).transpose(0, 2, 1, 3, 4)
        made = np.concatenate([whole[None], tiles.reshape(-1, side, side, 3)])
        return np.ascontiguousarray(made.transpose(0, 3, 1, 2)), layout

    def _canvas(self, image: Image.Image, height: int, width: int) -> np.ndarray:
        """The image as large as it fits, in the middle of `[height, width, 3]` of black."""
        scale_w, scale_h = width / image.width, height / image.height
        if scale_w < scale_h:
            new = min(math.ceil(image.height * scale_w), height), width
        else:
            new = height, min(math.ceil(image.width * scale_h), width)
        canvas = np.zeros((height, width, 3), dtype=np.uint8)
        top, left = (height - new[0]) // 2, (width - new[1]) // 2
        resized = np.asarray(image.resize((new[1], new[0]), self._resample), dtype=np.uint8)
        canvas[top : top + new[0], left : left + new[1]] = resized
        return canvas
