"""Image tokens of images of any size are as many as the reference processor says."""

import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor
from transformers.image_utils import ChannelDimension
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from llava_batch.errors import UsageError
from llava_batch.prepare.own_shape import OwnShape
from llava_batch.prompts.image_tokens import Layout, Tiling, pairs, tokens_by_rows

NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
RULES = {
    "next": Tiling(side=336, features=24, whole=576, resolutions=pairs(NEXT)),
    "onevision": Tiling(
        side=384, features=27, whole=729, resolutions=pairs(ONEVISION), most_tiles=9
    ),
    "onevision of four": Tiling(
        side=384, features=27, whole=729, resolutions=pairs(ONEVISION), most_tiles=4
    ),
}
"""The published checkpoints' own."""


def sizes(count: int = 1000) -> list[tuple[int, int]]:
    """(height, width): small ones, photographs, and strips up to 4000 by 100 and back."""
    draw = random.Random(0)
    odd = [
        (1, 1),
        (1, 2),
        (100, 4000),
        (4000, 100),
        (1, 10000),
        (10000, 1),
        (336, 336),
        (672, 672),
        (337, 335),
    ]
    most = [20, 400, 4000]
    return odd + [
        (max(1, draw.randrange(draw.choice(most)) + 1), draw.randrange(draw.choice(most)) + 1)
        for _ in range(count)
    ]


def next_reference(height: int, width: int) -> int:
    """`LlavaNextProcessor`'s own count, without a tokenizer."""
    made = object.__new__(LlavaNextProcessor)
    made.image_processor = SimpleNamespace(image_grid_pinpoints=NEXT)
    made.patch_size, made.num_additional_image_tokens = 14, 1
    return made._get_number_of_features(height, width, 336, 336) - 1  # strategy `default`


def onevision_reference(height: int, width: int, most: int = 9) -> int:
    """`LlavaOnevisionProcessor`'s own count, without a tokenizer."""
    made = object.__new__(LlavaOnevisionProcessor)
    made.image_processor = SimpleNamespace(image_grid_pinpoints=ONEVISION)
    made.num_image_tokens, made.vision_aspect_ratio = 729, f"anyres_max_{most}"
    return made._get_number_of_features(height, width, 384, 384)


REFERENCES: dict[str, Callable[[int, int], int]] = {
    "next": next_reference,
    "onevision": onevision_reference,
    "onevision of four": partial(onevision_reference, most=4),
}


def test_an_image_in_its_own_shape_has_the_reference_processors_size_and_patches() -> None:
    rule = OwnShape(most=(1024, 1024), patch=16, resample=3)
    for height, width in sizes():
        if max(height, width) > 1024 * min(height, width):
            continue  # too thin: the reference has no pixel left, and fails to resize
        image = np.broadcast_to(np.uint8(0), (3, height, width))
        size = get_resize_output_image_size(image, 1024, 16, ChannelDimension.FIRST)
        assert rule.size(height, width) == size, (height, width)
        ids = tokens_by_rows(size[0], size[1], 16, image=1, row_end=2, end=3)
        assert (ids.count(1), ids.count(2), ids.count(3)) == (
            size[0] // 16 * (size[1] // 16), size[0] // 16 - 1, 1,
        )  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_thousand_sizes_have_the_reference_processors_tokens(name: str) -> None:
    rule = RULES[name]
    fewest, most = rule.range
    counts = set()
    for height, width in sizes():
        count = rule.num_tokens(rule.layout(height, width))
        assert count == REFERENCES[name](height, width), (height, width)
        assert fewest <= count <= most
        counts.add(count)
    assert len(counts) > 50
    assert max(counts) > 0.9 * most


def test_fewer_tiles_are_fewer_grids_in_the_same_order() -> None:
    rule = RULES["next"]
    assert rule.at_most(3).resolutions == tuple(p for p in pairs(NEXT) if p != (672, 672))
    assert rule.at_most(36) == rule
    assert rule.at_most(2).layout(672, 672) == Layout(1, 2, 0, 24, 12, 36, 24, 24)
    assert rule.at_most(2).range[1] < rule.range[1]
    with pytest.raises(UsageError, match=r"--max-tiles 1: .* has 2 tiles, give at least 2"):
        rule.at_most(1)


@pytest.mark.parametrize("bad", [None, [], "336", [[336]], [[336, 0]], [[336, 1.5]], {"a": 1}])
def test_grids_that_are_no_pairs_of_lengths_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        pairs(bad)
