"""LLaVA-OneVision: LLaVA-NeXT's way with tiles, but a grid that keeps too much is reduced.

An image by itself has a grid; of several in one prompt each is seen as a whole alone. Videos, which the
family was trained for too, are not taken. See transformers' LlavaOnevisionModel.
"""

import torch
from torch.nn.functional import interpolate

from llava_batch.engine.model.llava_next import LlavaNext
from llava_batch.engine.request import Grid


class LlavaOnevision(LlavaNext):
    """As `LlavaNext`; what a grid keeps is brought to its `height` and `width`."""

    def size(self, grid: Grid) -> tuple[int, int]:
        """As the request says: how far a grid is reduced is its rule's affair."""
        return grid.height, grid.width

    def resized(self, features: torch.Tensor, grid: Grid) -> torch.Tensor:
        """`[C, rows, columns]` -> `[C, height, width]`, bilinear."""
        if tuple(features.shape[1:]) == (grid.height, grid.width):
            return features
        return interpolate(features[None], [grid.height, grid.width], mode="bilinear")[0]
