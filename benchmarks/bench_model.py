"""The benchmarks' model and work, built from a seed: no download, the same on every machine.

`small` is 149.6 M parameters (CLIP 336/14 384x8, Llama 768x12); `llava-1.5-7b` has the real
checkpoint's shape with random weights. Prompts are 576 image tokens and 11 of text; answers have
log-normal lengths, median 25, between 9 and 96, with the end token ignored.
"""

from llava_batch.engine import Request  # isort: skip before transformers, whose warnings it hushes

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging

logging.set_verbosity_error()  # an end token of -1 is meant: every answer has its own length
logging.disable_progress_bar()

IMAGE_TOKEN, NUM_IMAGE_TOKENS, IMAGE_SIZE = 31999, 576, 336
SHAPES = ("small", "llava-1.5-7b")


def config(shape: str) -> LlavaConfig:
    """The model's config; `shape` is one of SHAPES."""
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}, must be one of {', '.join(SHAPES)}")
    big = shape == "llava-1.5-7b"
    vision = CLIPVisionConfig(
        hidden_size=1024 if big else 384,
        intermediate_size=4096 if big else 1536,
        num_hidden_layers=24 if big else 8,
        num_attention_heads=16 if big else 6,
        image_size=IMAGE_SIZE,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32064 if big else 32000,
        hidden_size=4096 if big else 768,
        intermediate_size=11008 if big else 2048,
        num_hidden_layers=32 if big else 12,
        num_attention_heads=32 if big else 12,
        num_key_value_heads=32 if big else 12,
        max_position_embeddings=4096 if big else 1024,
        tie_word_embeddings=False,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)


def build(
    shape: str = "small",
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """A random model of that shape, built on the device in the dtype."""
    torch.manual_seed(seed)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config(shape))
    finally:
        torch.set_default_dtype(previous)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def lengths(count: int, seed: int = 0) -> list[int]:
    """Answer lengths: log-normal, median 25, cut to 9..96."""
    drawn = np.random.default_rng(seed).lognormal(np.log(25), 0.6, count)
    return np.clip(drawn.round(), 9, 96).astype(int).tolist()


def pixels(seed: int) -> np.ndarray:
    """One random image, uint8 `[1, 3, 336, 336]`."""
    shape = (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def prompt(seed: int, num_text: int = 11) -> list[int]:
    """The start token, the image and `num_text - 1` tokens of text."""
    text = np.random.default_rng(10_000 + seed).integers(3, IMAGE_TOKEN, num_text - 1).tolist()
    return [1, *text[:4], *[IMAGE_TOKEN] * NUM_IMAGE_TOKENS, *text[4:]]


def captions(count: int, *, first: int = 0, num_tokens: int | None = None) -> list[Request]:
    """One prompt over images `first`.., answers of uneven length (or all of `num_tokens`)."""
    ids = prompt(0)
    return [
        Request(
            id=f"caption-{number}",
            pixels=pixels(first + number),
            prompt_ids=ids,
            max_new_tokens=num_tokens or length,
            ignore_eos=True,
        )
        for number, length in enumerate(lengths(count))
    ]


def questions(
    num_images: int, *, first: int = 0, per_image: int = 4, num_tokens: int = 8
) -> list[Request]:
    """`per_image` questions of each image, which stand behind the same beginning."""
    start = prompt(0)[: 5 + NUM_IMAGE_TOKENS]
    made = []
    for image in range(num_images):
        shared = pixels(first + image)
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
    num_images: int, *, first: int = 0, num_turns: int = 3, num_tokens: int = 8
) -> list[Request]:
    """Dialogues of `num_turns` turns, each with a short prompt of its own."""
    turns = tuple((2, *prompt(20 + turn, 13)[-8:]) for turn in range(1, num_turns))
    return [
        Request(
            id=f"dialogue-{number}",
            pixels=pixels(first + number),
            prompt_ids=prompt(0),
            turns=turns,
            max_new_tokens=num_tokens,
            ignore_eos=True,
        )
        for number in range(num_images)
    ]
