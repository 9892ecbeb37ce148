"""The embedded demo model, loaded from its folder: float32 answers are transformers' own."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llava import PATHS, by_key
from transformers import AutoTokenizer, LlavaForConditionalGeneration

import llava_batch
from llava_batch.engine import Engine, Request
from llava_batch.engine.model.load import processor_files
from llava_batch.engine.model.vision import read_normalisation

FOLDER = Path(llava_batch.__file__).parent / "demo" / "model"
QUESTIONS = (
    "Describe the image.",
    "What colour is the circle?",
    "How many shapes are there in this picture?",
    "Is there a red square?",
    "What is in this picture?",
)


@functools.cache
def parts():
    if not (FOLDER / "model.safetensors").is_file():
        pytest.skip("the demo model is not there")
    model = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(FOLDER)


def picture(seed: int, size: int) -> np.ndarray:
    """A plain ground with two rectangles, uint8 `[1, 3, size, size]`."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((1, 3, size, size), dtype=np.uint8)
    pixels[:] = rng.integers(0, 256, (1, 3, 1, 1))
    for _ in range(2):
        top, left = rng.integers(0, size // 2, 2)
        side = rng.integers(size // 6, size // 3)
        pixels[0, :, top : top + side, left : left + side] = rng.integers(0, 256, (3, 1, 1))
    return pixels


def questions(count: int) -> list[Request]:
    model, tokenizer = parts()
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return [
        Request(
            id=str(number),
            pixels=picture(number, vision.image_size),
            prompt_ids=tokenizer(
                f"USER: {'<image>' * patches}\n{QUESTIONS[number % len(QUESTIONS)]} ASSISTANT:"
            ).input_ids,
            max_new_tokens=24,
        )
        for number in range(count)
    ]


@torch.inference_mode()
def alone(request: Request) -> tuple[int, ...]:
    model, _ = parts()
    settings = read_normalisation(processor_files(FOLDER))
    mean = torch.tensor(settings.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(settings.image_std).view(1, 3, 1, 1)
    pixels = (torch.from_numpy(request.pixels).float() * settings.rescale_factor - mean) / std
    ids = torch.tensor([request.prompt_ids])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
    )[0, ids.shape[1] :].tolist()
    return tuple(out[:-1] if out[-1] == model.generation_config.eos_token_id else out)


@pytest.mark.parametrize("path", [*PATHS, "torch"])
@pytest.mark.parametrize("slots", [1, 2, 3, 8, 16])
def test_the_demo_model_answers_as_transformers(slots, path):
    given = questions(10)
    options = PATHS.get(path, {"attention": path})
    made = Engine.load(FOLDER, slots=slots, max_tokens=256, **options)
    found = by_key(list(made.generate(given)))
    for request in given:
        assert found[(request.id, 0, 0)].token_ids == _alone(int(request.id))


@functools.cache
def _alone(number: int) -> tuple[int, ...]:
    return alone(questions(10)[number])


def test_a_loaded_engine_knows_stop_strings():
    _, tokenizer = parts()
    first = questions(1)[0]
    whole = tokenizer.decode(_alone(0), skip_special_tokens=True)
    stop = whole.split()[2]
    request = Request(
        id="0", pixels=first.pixels, prompt_ids=first.prompt_ids, max_new_tokens=24, stop=(stop,)
    )
    (found,) = Engine.load(FOLDER, slots=1, max_tokens=256).generate([request])
    assert found.finish_reason == "stop"
    assert found.text == whole[: whole.index(stop)]


def test_the_default_on_cpu_is_float32_and_the_folders_normalisation():
    parts()
    made = Engine.load(FOLDER, device="cpu", slots=1, max_tokens=128)
    assert made.llava.dtype == torch.float32
    settings = read_normalisation(processor_files(FOLDER))
    assert made.llava.vision._mean.flatten().tolist() == pytest.approx(settings.image_mean)


def test_what_cannot_be_loaded_says_what_to_do():
    parts()
    with pytest.raises(ValueError, match="dtype is 'float12'"):
        Engine.load(FOLDER, dtype="float12")
    with pytest.raises(ValueError, match="quantization is 'int3'"):
        Engine.load(FOLDER, quantization="int3")
    with pytest.raises(ValueError, match="max_tokens is 9999999"):
        Engine.load(FOLDER, max_tokens=9_999_999)
