"""Tiny random LLaVAs whose tokens vary and whose answers end, and the reference for one request.

The reference is transformers' own `generate`, one request alone, on a copy of the model.
"""

import copy
from functools import cache

import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

from llava_batch.engine import Completion, Engine, Request
from llava_batch.engine.model.vision import Normalisation

IMAGE, EOS, BOS, VOCAB = 60, 2, 1, 64
SIZE, PATCH = 28, 7
TOKENS = (SIZE // PATCH) ** 2
SHAPES = ("multi-head", "grouped-query", "mistral", "qwen2")
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
"""Of every language model's config."""


def text_config(shape: str):
    """A language model's config of the named shape."""
    if shape == "multi-head":
        return LlamaConfig(num_key_value_heads=4, **COMMON)
    if shape == "grouped-query":
        return LlamaConfig(num_key_value_heads=2, **COMMON)
    if shape == "mistral":
        return MistralConfig(num_key_value_heads=1, head_dim=32, sliding_window=24, **COMMON)
    return Qwen2Config(num_key_value_heads=2, **COMMON)


def vision_config() -> CLIPVisionConfig:
    """The tower's config."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
    )


@cache
def tiny(shape: str = "multi-head", seed: int = 0) -> LlavaForConditionalGeneration:
    """A random model in float32 and eval mode; do not hand it to an engine, which takes it over."""
    return random_llava(vision_config(), text_config(shape), seed)


def random_llava(vision, text, seed: int = 0, **settings) -> LlavaForConditionalGeneration:
    """A random model of these configs, in float32 and eval mode."""
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, **settings)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "vision" not in name:
                torch.nn.init.normal_(weight, std=0.25)
        model.lm_head.weight[EOS] *= 1.5
        model.lm_head.weight[IMAGE] = 0  # transformers would take an answered one for an image
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = 0
    return model


PATHS: dict[str, dict] = {
    "padded": {},
    "packed": {"attention": "sdpa"},
    "lagging": {"attention": "sdpa", "lag": True},
}
"""The engine's ways to the same answers: on CPU the first is the default, on CUDA the last."""


def engine(shape: str = "multi-head", **options) -> Engine:
    """An engine on a copy of the tiny model."""
    return wrapped(copy.deepcopy(tiny(shape)), **options)


def wrapped(model: LlavaForConditionalGeneration, **options) -> Engine:
    """An engine on this model, along the path that the test runs on, unless the test names one."""
    path = {} if "attention" in options else PATHS[on_path]
    return Engine(model, **{"slots": 3, "max_tokens": 160, **path, **options})


on_path = "padded"
"""Set by the fixture `path`."""


def image(seed: int) -> np.ndarray:
    """One random image, uint8 `[1, 3, SIZE, SIZE]`."""
    return np.random.default_rng(seed).integers(0, 256, (1, 3, SIZE, SIZE), dtype=np.uint8)


def prompt(seed: int, length: int, num_image_tokens: int = TOKENS) -> list[int]:
    """BOS, some text, an image, and `length` tokens of text."""
    rng = np.random.default_rng(1000 + seed)
    text = rng.integers(3, IMAGE, 3 + length).tolist()
    return [BOS, *text[:3], *[IMAGE] * num_image_tokens, *text[3:]]


def requests(count: int, *, lengths=(3, 9, 5, 17, 11), **options) -> list[Request]:
    """Requests with an image each and uneven prompts and limits."""
    return [
        Request(
            id=f"r{number}",
            pixels=image(number),
            prompt_ids=prompt(number, lengths[number % len(lengths)]),
            **{"max_new_tokens": 4 + 5 * (number % 4), **options},
        )
        for number in range(count)
    ]


def pixel_values(pixels: np.ndarray, model: LlavaForConditionalGeneration) -> torch.Tensor:
    """The reference processor's rescale and normalise, written out."""
    plain = Normalisation()
    scaled = torch.from_numpy(pixels).float() * torch.tensor(plain.rescale_factor)
    mean = torch.tensor(plain.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(plain.image_std).view(1, 3, 1, 1)
    return ((scaled - mean) / std).to(model.dtype)


@torch.inference_mode()
def reference_ids(model: LlavaForConditionalGeneration, request: Request, ids: list[int], **more):
    """What transformers' `generate` answers to `ids` alone, without its end token."""
    options = {
        "max_new_tokens": request.max_new_tokens,
        "min_new_tokens": request.min_new_tokens or None,
        "do_sample": False,
        "repetition_penalty": request.repetition_penalty,
        **more,
    }
    if request.ignore_eos:
        options["eos_token_id"] = -1
    inputs = {"input_ids": torch.tensor([ids])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if request.pixels is not None:
        inputs["pixel_values"] = pixel_values(request.pixels, model)
    out = model.generate(**inputs, **options)[0, len(ids) :].tolist()
    return out[:-1] if out and out[-1] == EOS and not request.ignore_eos else out


_known: dict[tuple, list[tuple[int, ...]]] = {}


def reference(shape: str, request: Request) -> list[tuple[int, ...]]:
    """All turns of a request, one after the other, each from the whole conversation."""
    pixels = None if request.pixels is None else request.pixels.tobytes()
    options = (request.max_new_tokens, request.min_new_tokens, request.repetition_penalty)
    key = (shape, pixels, tuple(request.prompt_ids), request.turns, *options, request.ignore_eos)
    if key not in _known:
        _known[key] = _reference(tiny(shape), request)
    return _known[key]


def _reference(model: LlavaForConditionalGeneration, request: Request) -> list[tuple[int, ...]]:
    ids = list(request.prompt_ids)
    answers = []
    for turn in [*request.turns, None]:
        answer = reference_ids(model, request, ids)
        answers.append(tuple(answer))
        ids += answer + list(turn or ())
    return answers


def by_key(completions: list[Completion]) -> dict[tuple[str, int, int], Completion]:
    """Completions by (id, turn, sample); every key exactly once."""
    found = {(c.id, c.turn, c.sample): c for c in completions}
    assert len(found) == len(completions)
    return found
