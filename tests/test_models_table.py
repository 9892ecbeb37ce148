"""The README's table of models says what the tests run, and what an image of each takes."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from llava_batch.prompts.image_tokens import tokens_by_rows
from tests.prompts.test_image_tokens import RULES
from tests.published import FAMILIES

README = Path(__file__).resolve().parent.parent / "README.md"
TOWERS = {
    "CLIPVisionConfig": "CLIP",
    "SiglipVisionConfig": "SigLIP",
    "PixtralVisionConfig": "Pixtral",
}


def rows() -> list[list[str]]:
    """The table's cells, line by line."""
    lines = re.findall(
        r"^\| (`\w+ForConditionalGeneration` .*) \|$", README.read_text(), re.MULTILINE
    )
    return [[cell.strip(" `") for cell in line.split("|")] for line in lines]


def test_each_line_is_a_family_with_the_language_models_that_are_run() -> None:
    run: dict[tuple[str, str], set[str]] = {}
    for made in FAMILIES.values():
        family = made["config"].__name__.removesuffix("Config") + "ForConditionalGeneration"
        texts = run.setdefault((family, TOWERS[made["tower"].__name__]), set())
        texts.add(made["text"].__name__.removesuffix("Config"))
    assert {(row[0], row[1]): set(row[2].split(", ")) for row in rows()} == run


def test_an_images_tokens_are_those_of_the_published_sizes() -> None:
    patches = partial(tokens_by_rows, patch=16, image=1, row_end=2, end=3)
    pixtral = [len(patches(side, side)) for side in (16, 1024)]
    by_class = {(row[0].removesuffix("ForConditionalGeneration"), row[1]): row[4] for row in rows()}
    several = RULES["onevision"].num_tokens(None)
    assert by_class == {
        ("Llava", "CLIP"): f"{(336 // 14) ** 2}",
        ("Llava", "SigLIP"): f"{(384 // 14) ** 2}",
        ("Llava", "Pixtral"): f"{spread(pixtral)}, by its size",
        ("LlavaNext", "CLIP"): f"{spread(RULES['next'].range)}, by its size",
        ("LlavaNext", "SigLIP"): "by its size",
        ("LlavaOnevision", "SigLIP"): (
            f"{spread(RULES['onevision'].range)}, by its size; {several} of several"
        ),
        ("VipLlava", "CLIP"): f"{(336 // 14) ** 2}",
    }


def spread(bounds: Any) -> str:
    fewest, most = bounds
    return f"{fewest:,} to {most:,}"
