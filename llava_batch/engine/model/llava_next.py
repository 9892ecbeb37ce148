"""LLaVA-NeXT: an image of any resolution is its whole, and the tiles of a grid that is laid over it.

The grid's features are put together as one map; what padding made of it is left out, and a learned
newline closes each row (transformers' LlavaNextModel, whose `pack_image_features` would have the host
wait for the card). Which rows and columns are the image's is part of the request (`request.Grid`).
Legend: as in `vision`; R, K rows and columns of the grid; S features along a tile's side.
"""

from typing import Any

import torch

from llava_batch.engine.model.vision import Vision
from llava_batch.engine.request import Grid, Image


class LlavaNext(Vision):
    """Tiles `[1 + R K, 3, H, W]` of each image, the whole first; without a grid the whole alone."""

    def why_not(self, image: Image) -> str | None:
        """Tiles that are not the grid's, or a part of it that is none."""
        grid, tiles = image.grid, int(image.pixels.shape[0])
        expected = 1 if grid is None else 1 + grid.rows * grid.columns
        if tiles != expected:
            return f"an image has {tiles} tiles, its grid {expected} with the whole"
        if grid is not None and not self._is_within(grid):
            return f"{grid} is no part of a grid with {self.side} features along a tile's side"
        return self.why_not_tiles(image.pixels)

    @property
    def side(self) -> int:
        """S."""
        vision: Any = self.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return side

    def _is_within(self, grid: Grid) -> bool:
        height, width = grid.rows * self.side, grid.columns * self.side
        inside = 0 <= grid.top <= grid.bottom <= height and 0 <= grid.left <= grid.right <= width
        return inside and (grid.height, grid.width) == self.size(grid)

    def size(self, grid: Grid) -> tuple[int, int]:
        """Rows and columns of features that the grid has in the end."""
        return grid.bottom - grid.top, grid.right - grid.left

    def num_tokens(self, image: Image) -> int:
        """The whole's, the grid's, a newline for each row; the whole alone has one newline."""
        grid = image.grid
        return self.features_per_tile + (1 if grid is None else grid.height * (grid.width + 1))

    def assembled(self, tiles: torch.Tensor, image: Image) -> torch.Tensor:
        """`[t, P, C]` -> `[T, C]`."""
        newline, grid = self.inner.image_newline.to(tiles.dtype), image.grid
        if grid is None:
            return torch.cat([tiles[0], newline[None]])
        kept = self.resized(self._map(tiles[1:], grid), grid)
        ends = newline[:, None, None].expand(*kept.shape[:-1], 1)
        rows = torch.cat([kept, ends], dim=-1).flatten(1, 2).transpose(0, 1)
        return torch.cat([tiles[0], rows])

    def _map(self, tiles: torch.Tensor, grid: Grid) -> torch.Tensor:
        """`[R K, P, C]` -> the features that are kept, `[C, rows, columns]`."""
        side = self.side
        parts = tiles.view(grid.rows, grid.columns, side, side, -1).permute(4, 0, 2, 1, 3)
        whole = parts.contiguous().flatten(1, 2).flatten(2, 3)
        return whole[:, grid.top : grid.bottom, grid.left : grid.right]

    def resized(self, features: torch.Tensor, grid: Grid) -> torch.Tensor:
        """As it is."""
        return features
