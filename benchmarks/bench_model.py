"""The benchmarks' model and work, built from a seed: no download, the same on every machine.

`small` is 149.6 M parameters (CLIP 336/14 384x8, Llama 768x12); `llava-1.5-7b` has the real
checkpoint's shape with random weights. `small-next` and `small-onevision` are `small`'s language model behind
those families' ways with tiles: 640x480 pictures in two by two tiles (OneVision: 768x768 in two by two), so that
an image has four times its tokens. Prompts are the image tokens and 11 of text; answers have log-normal
lengths, median 25, between 9 and 96, with the end token ignored.
"""

from llava_batch.engine import Grid, Image, Request  # isort: skip before transformers, whose warnings it hushes

import numpy as np
import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.utils import logging

logging.set_verbosity_error()  # an end token of -1 is meant: every answer has its own length
logging.disable_progress_bar()

IMAGE_TOKEN, NUM_IMAGE_TOKENS, IMAGE_SIZE = 31999, 576, 336
SHAPES = ("small", "small-next", "small-onevision", "llava-1.5-7b")
TILED: dict[str, tuple[int, Grid]] = {
    "small-next": (336, Grid(2, 2, 6, 42, 0, 48, 36, 48)),
    "small-onevision": (384, Grid(2, 2, 0, 54, 0, 54, 54, 54)),
}
"""Pixels along a tile's side, and the grid that a picture lies in."""


def config(shape: str) -> LlavaConfig | LlavaNextConfig | LlavaOnevisionConfig:
    """The model's config; `shape` is one of SHAPES."""
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}, must be one of {', '.join(SHAPES)}")
    big = shape == "llava-1.5-7b"
    siglip = shape == "small-onevision"
    vision = (SiglipVisionConfig if siglip else CLIPVisionConfig)(
        hidden_size=1024 if big else 384,
        intermediate_size=4096 if big else 1536,
        num_hidden_layers=24 if big else 8,
        num_attention_heads=16 if big else 6,
        image_size=TILED[shape][0] if shape in TILED else IMAGE_SIZE,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32064 if big else 32000,
        hidden_size=4096 if big else 768,
        intermediate_size=11008 if big else 2048,
        num_hidden_layers=32 if big else 12,
        num_attention_heads=32 if big else 12,
        num_key_value_heads=32 if big else 12,
        max_position_embeddings=4096 if big or shape in TILED else 1024,
        tie_word_embeddings=False,
    )
    family = {"small-next": LlavaNextConfig, "small-onevision": LlavaOnevisionConfig}
    return family.get(shape, LlavaConfig)(
        vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN
    )


SIZES = {"small-next": (480, 640), "small-onevision": (768, 768)}
"""(height, width) of the pictures that have these grids."""


def num_image_tokens(shape: str) -> int:
    """Image tokens of every picture."""
    if shape not in TILED:
        return NUM_IMAGE_TOKENS
    side, grid = TILED[shape]
    return (side // 14) ** 2 + grid.height * (grid.width + 1)


def build(
    shape: str = "small",
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    seed: int = 0,
) -> PreTrainedModel:
    """A random model of that shape, built on the device in the dtype."""
    torch.manual_seed(seed)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = config(shape)
            model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(made)](made)
    finally:
        torch.set_default_dtype(previous)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def lengths(count: int, seed: int = 0) -> list[int]:
    """Answer lengths: log-normal, median 25, cut to 9..96."""
    drawn = np.random.default_rng(seed).lognormal(np.log(25), 0.6, count)
    return np.clip(drawn.round(), 9, 96).astype(int).tolist()


def pixels(seed: int, shape: str = "small") -> np.ndarray | tuple[Image, ...]:
    """One random image, uint8 `[1, 3, 336, 336]`, or the tiles of one."""
    side, grid = TILED.get(shape, (IMAGE_SIZE, None))
    tiles = 1 if grid is None else 1 + grid.rows * grid.columns
    made = np.random.default_rng(seed).integers(0, 256, (tiles, 3, side, side), dtype=np.uint8)
    return made if grid is None else (Image(made, grid),)


def prompt(seed: int, num_text: int = 11, shape: str = "small") -> list[int]:
    """The start token, the image and `num_text - 1` tokens of text."""
    text = np.random.default_rng(10_000 + seed).integers(3, IMAGE_TOKEN, num_text - 1).tolist()
    return [1, *text[:4], *[IMAGE_TOKEN] * num_image_tokens(shape), *text[4:]]


def captions(
    count: int, *, first: int = 0, num_tokens: int | None = None, shape: str = "small"
) -> list[Request]:
    """One prompt over images `first`.., answers of uneven length (or all of `num_tokens`)."""
    ids = prompt(0, shape=shape)
    return [
        Request(
            id=f"caption-{number}",
            pixels=pixels(first + number, shape),
            prompt_ids=ids,
            max_new_tokens=num_tokens or length,
            ignore_eos=True,
        )
        for number, length in enumerate(lengths(count))
    ]


def questions(
    num_images: int,
    *,
    first: int = 0,
    per_image: int = 4,
    num_tokens: int = 8,
    shape: str = "small",
) -> list[Request]:
    """`per_image` questions of each image, which stand behind the same beginning."""
    start = prompt(0, shape=shape)[: 5 + num_image_tokens(shape)]
    made = []
    for image in range(num_images):
        shared = pixels(first + image, shape)
        for number in range(per_image):
            text = prompt(1 + number, 13)[-8:]
            made.append(
                Request(
                    id=f"question-{image}-{number}",
                    pixels=shared,
                    prompt_ids=[*start, *text],
                    max_new_tokens=num_tokens,
                    ignore_eos=True,
                )
            )
    return made


def dialogues(
    num_images: int,
    *,
    first: int = 0,
    num_turns: int = 3,
    num_tokens: int = 8,
    shape: str = "small",
) -> list[Request]:
    """Dialogues of `num_turns` turns, each with a short prompt of its own."""
    turns = tuple((2, *prompt(20 + turn, 13)[-8:]) for turn in range(1, num_turns))
    return [
        Request(
            id=f"dialogue-{number}",
            pixels=pixels(first + number, shape),
            prompt_ids=prompt(0, shape=shape),
            turns=turns,
            max_new_tokens=num_tokens,
            ignore_eos=True,
        )
        for number in range(num_images)
    ]
