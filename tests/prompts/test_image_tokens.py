"""Image tokens of images of any size are as many as the reference processor says."""

import random
from types import SimpleNamespace

import pytest
from transformers import LlavaNextProcessor

from llava_batch.errors import UsageError
from llava_batch.prompts.image_tokens import Layout, Tiling, pairs

NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
RULES = {
    "next": Tiling(side=336, features=24, whole=576, resolutions=pairs(NEXT)),
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


REFERENCES = {"next": next_reference}


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
