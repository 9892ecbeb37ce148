"""How many image tokens an image of any resolution takes, and how it is cut into tiles: pure arithmetic.

A tiled family shows the tower an image as a whole, and once more in the tiles of that grid, of a list of
grids, which loses least of it. In the grid the image keeps its proportions, so that part of the grid is
padding; features of padding are left out of the prompt, which is why the number of tokens depends on the
size. The rules are transformers' (`select_best_resolution`, `LlavaNextProcessor`, `LlavaOnevisionProcessor`),
after LLaVA-NeXT's and LLaVA-OneVision's publications.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from llava_batch.errors import UsageError


class Layout(NamedTuple):
    """A grid of tiles, and which of its features are the image's: `engine.Grid`, as plain numbers."""

    rows: int
    columns: int
    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A family's rule for one checkpoint.

    side: pixels along a tile's side. features: along a tile's side. whole: tokens of the image as a whole.
    resolutions: (height, width) of the grids, in pixels. most_tiles: features that a grid may keep, in
    tiles' worth; more are reduced (None: all are kept). whole_if_several: of several images in a prompt
    each is the whole alone.
    """

    side: int
    features: int
    whole: int
    resolutions: tuple[tuple[int, int], ...]
    most_tiles: int | None = None
    whole_if_several: bool = False

    def at_most(self, max_tiles: int) -> "Tiling":
        """With only the grids of `max_tiles` tiles or fewer.

        Raises:
            UsageError: there is none.
        """
        fewer = tuple(size for size in self.resolutions if self._tiles(size) <= max_tiles)
        if not fewer:
            least = min(map(self._tiles, self.resolutions))
            raise UsageError(
                f"--max-tiles {max_tiles}: the model's smallest grid has {least} tiles, give at least {least}"
            )
        return replace(self, resolutions=fewer)

    def _tiles(self, size: tuple[int, int]) -> int:
        return (size[0] // self.side) * (size[1] // self.side)

    def resolution(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the grid for an image: the one that keeps most of its pixels, and of several
        that keep as many the first that wastes least."""
        found, most, least = self.resolutions[0], 0, math.inf
        for rows, columns in self.resolutions:
            scale = min(columns / width, rows / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            wasted = rows * columns - kept
            if kept > most or (kept == most and wasted < least):
                found, most, least = (rows, columns), kept, wasted
        return found

    def layout(self, height: int, width: int) -> Layout:
        """The grid for an image of this size."""
        size = self.resolution(height, width)
        rows, columns = size[0] // self.side, size[1] // self.side
        whole = rows * self.features, columns * self.features
        top, left = self._padding(whole, height, width)
        high, wide = self._reduced(whole[0] - 2 * top, whole[1] - 2 * left)
        return Layout(rows, columns, top, whole[0] - top, left, whole[1] - left, high, wide)

    def _padding(self, whole: tuple[int, int], height: int, width: int) -> tuple[int, int]:
        """Rows of features above the image and as many below it, columns left and right of it."""
        # In this order: a quotient in between rounds otherwise.
        if width / height > whole[1] / whole[0]:
            return (whole[0] - int(round(height * (whole[1] / width), 7))) // 2, 0
        return 0, (whole[1] - int(round(width * (whole[0] / height), 7))) // 2

    def _reduced(self, height: int, width: int) -> tuple[int, int]:
        if self.most_tiles is None:
            return height, width
        ratio = math.sqrt(height * width / (self.most_tiles * self.features**2))
        return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)

    def num_tokens(self, layout: Layout | None) -> int:
        """The whole's, the grid's and a newline for each of its rows; without a grid one newline."""
        return self.whole + (1 if layout is None else layout.height * (layout.width + 1))

    @property
    def range(self) -> tuple[int, int]:
        """Fewest and most tokens that an image may take: of a strip that leaves no row in its grid the whole
        alone; of others the most that a grid keeps, with any padding (reduced, a fuller one may keep less)."""
        most = self.num_tokens(None)
        for size in self.resolutions:
            whole = size[0] // self.side * self.features, size[1] // self.side * self.features
            for off in range(max(whole) // 2):
                for high, wide in ((whole[0] - 2 * off, whole[1]), (whole[0], whole[1] - 2 * off)):
                    if high > 0 and wide > 0:
                        kept = self._reduced(high, wide)
                        most = max(most, self.whole + kept[0] * (kept[1] + 1))
        return self.whole, most


def tokens_by_rows(
    height: int, width: int, patch: int, *, image: int, row_end: int, end: int
) -> list[int]:
    """Pixtral's tokens for an image of this size in pixels: a row of patches, what ends it, and so on."""
    row = [image] * (width // patch) + [row_end]
    return [*(row * (height // patch))[:-1], end]


def pairs(value: object) -> tuple[tuple[int, int], ...]:
    """`image_grid_pinpoints` as a config has them.

    Raises:
        ValueError: they are no list of pairs of lengths.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"image_grid_pinpoints are {value!r}, no list of (height, width)")
    made = []
    for pair in value:
        lengths = list(pair) if isinstance(pair, Sequence) else []
        if len(lengths) != 2 or not all(type(n) is int and n > 0 for n in lengths):
            raise ValueError(f"image_grid_pinpoints hold {pair!r}, which is no (height, width)")
        made.append((lengths[0], lengths[1]))
    return tuple(made)
