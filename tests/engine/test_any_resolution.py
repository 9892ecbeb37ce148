"""Images of any size, through our preparing and our engine, answer as transformers' processor and `generate`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_batch.engine import Engine, Grid, Image, Request
from llava_batch.job import Job
from llava_batch.prepare.actor import Prepare
from tests.prepare.test_actor import row
from tests.published import publish
from tests.without_ray import LocalState, go_without_ray

SIZES = [(1, 1), (4000, 100), (100, 4000), (33, 21), (28, 28), (56, 57), (300, 200)]
"""(width, height)."""
_folders: dict[str, Path] = {}


@pytest.fixture
def folder(request: Any, tmp_path_factory: Any, monkeypatch: Any) -> Path:
    """The family's checkpoint, made once."""
    go_without_ray(monkeypatch)
    name = request.param
    if name not in _folders:
        _folders[name] = publish(name, tmp_path_factory.mktemp("model"))
    return _folders[name]


def picture(width: int, height: int) -> Picture.Image:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Picture.fromarray(noise)


def png(image: Picture.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def prepared(folder: Path, *images: Picture.Image, **settings: Any) -> tuple[Request, dict]:
    """What the job's preparing makes of a row with these images, as the generating side reads it."""
    job = Job(model=str(folder), **{"prompt": "What is in the picture?", **settings})
    out = Prepare(job, LocalState()).row(row(*map(png, images)))
    assert not out["error_code"], out["error_message"]
    flat, begin, made = np.frombuffer(out["pixels"], np.uint8), 0, []
    for shape, layout in zip(out["shapes"], out["layouts"], strict=True):
        end = begin + int(np.prod(shape))
        made.append(Image(flat[begin:end].reshape(shape), Grid(*layout) if layout else None))
        begin = end
    ids = out["asks"][0]["token_ids"][0]
    request = Request(id="", pixels=tuple(made), prompt_ids=ids, max_new_tokens=8)
    return request, out["asks"][0]


@torch.inference_mode()
def reference(folder: Path, ask: dict, *images: Picture.Image, **inputs: Any) -> tuple[list, list]:
    """The processor's token ids, and what `generate` answers to them."""
    processor = AutoProcessor.from_pretrained(folder)
    assert "Pil" in type(processor.image_processor).__name__
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    given = processor(images=list(images), text=ask["segments"][0], return_tensors="pt", **inputs)
    ids = given["input_ids"][0].tolist()
    out = model.generate(**given, max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    return ids, out[:-1] if out and out[-1] == 2 else out


NEXT = ["next mistral", "next vicuna", "next llama 3", "next qwen"]


@pytest.mark.parametrize("folder", NEXT[:1], indirect=True)
@pytest.mark.parametrize("options", [{}, {"attention": "sdpa"}], ids=["padded", "packed"])
def test_images_of_any_size_answer_as_generate_does_alone_and_in_flight(folder, options) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32", slots=3, max_tokens=300, **options)
    asked, expected = [], {}
    for number, size in enumerate(SIZES):
        image = picture(*size)
        request, ask = prepared(folder, image)
        ids, answer = reference(folder, ask, image)
        assert list(request.prompt_ids) == ids, "token ids as the reference processor's"
        expected[str(number)] = tuple(answer)
        asked.append(Request(**{**vars(request), "id": str(number)}))
    for request in asked:
        (alone,) = engine.generate([request])
        assert alone.token_ids == expected[request.id]
    together = {c.id: c.token_ids for c in engine.generate(asked[::-1])}
    assert together == expected
    assert len(set(expected.values())) > 3, "the answers tell the images apart"


@pytest.mark.parametrize("folder", NEXT[1:], indirect=True)
def test_every_language_model_answers_as_generate_does(folder) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32", slots=2, max_tokens=300)
    image = picture(90, 40)
    request, ask = prepared(folder, image)
    ids, answer = reference(folder, ask, image)
    assert list(request.prompt_ids) == ids
    (found,) = engine.generate([request])
    assert found.token_ids == tuple(answer)
