"""Rows with images of any size: what our preparing makes of them, and what transformers' processor and model do."""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionProcessor,
)

from llava_batch.engine import Grid, Image, Request
from llava_batch.job import Job
from llava_batch.prepare.actor import Prepare
from tests.prepare.test_actor import row
from tests.without_ray import LocalState


def picture(width: int, height: int) -> Picture.Image:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Picture.fromarray(noise)


def png(image: Picture.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def prepared(folder: Path, *images: Picture.Image, **settings: Any) -> tuple[Request, dict]:
    """What the job's preparing makes of a row with these images, as the generating side reads it."""
    if "question" not in settings:
        settings = {"prompt": "What is in the picture?", **settings}
    job = Job(model=str(folder), **settings)
    out = Prepare(job, LocalState()).row(row(*map(png, images)))
    assert not out["error_code"], out["error_message"]
    flat, begin, made = np.frombuffer(out["pixels"], np.uint8), 0, []
    for shape, layout in zip(out["shapes"], out["layouts"], strict=True):
        end = begin + int(np.prod(shape))
        made.append(Image(flat[begin:end].reshape(shape), Grid(*layout) if layout else None))
        begin = end
    ids, *turns = out["asks"][0]["token_ids"]
    request = Request(
        id="", pixels=tuple(made), prompt_ids=ids, turns=tuple(turns), max_new_tokens=8
    )
    return request, out["asks"][0]


class PixtralProcessor:
    """What transformers' class of this name, which cannot be imported without torchvision, does to text."""

    image_token: str
    image_break_token: str
    image_end_token: str
    patch_size: int

    def replace_image_token(self, inputs: Any, number: int) -> str:
        height, width = (int(length) // self.patch_size for length in inputs["image_sizes"][number])
        rows = [self.image_token * width] * height
        return self.image_break_token.join(rows) + self.image_end_token


def processed(folder: Path, images: list[Picture.Image], text: str) -> dict[str, Any]:
    """What the family's own processor makes on the PIL backend; those of which a part wants torchvision are
    put together from the others."""
    config = AutoConfig.from_pretrained(folder)
    wanted: dict[str, Any] = {
        "llava_onevision": LlavaOnevisionProcessor,
        "pixtral": PixtralProcessor,
    }
    kind: Any = wanted.get(config.model_type) or wanted.get(config.vision_config.model_type)
    if kind is None:
        whole = AutoProcessor.from_pretrained(folder)
        assert "Pil" in type(whole.image_processor).__name__
        return whole(images=images, text=text, return_tensors="pt")
    made = object.__new__(kind)
    said = json.loads((folder / "processor_config.json").read_text())
    vars(made).update(said)
    made.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    nested: Any = [images] if kind is LlavaOnevisionProcessor else images
    inputs = made.image_processor(images=nested, return_tensors="pt")
    first, *rest = text.replace("<image>", made.image_token).split(made.image_token)
    for number, piece in enumerate(rest):
        first += made.replace_image_token(inputs, number) + piece
    bos = not first.startswith("<s>")  # as apply_chat_template tokenizes
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(first, add_special_tokens=bos, return_tensors="pt")
    return {**ids, **inputs}


@cache
def transformers_model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


class Reference:
    """A prompt with its images, as the family's own processor makes it, and what transformers' model says to it."""

    def __init__(self, folder: Path, ask: dict, *images: Picture.Image) -> None:
        self.model = transformers_model(folder)
        self.given = processed(folder, list(images), ask["segments"][0])
        self.ids: list[int] = self.given["input_ids"][0].tolist()

    def _with(self, further: Sequence[int]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[*self.ids, *further]])
        return {**self.given, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @torch.inference_mode()
    def answer(self, further: Sequence[int] = (), **options: Any) -> list[int]:
        """What `generate` answers to the prompt with `further` tokens behind it, without its end token."""
        given = self._with(further)
        options = {"max_new_tokens": 8, "do_sample": False, **options}
        found: list[int] = self.model.generate(**given, **options)[0].tolist()
        out = found[len(self.ids) + len(further) :]
        return out[:-1] if out and out[-1] == 2 else out

    @torch.inference_mode()
    def logprobs(self, further: Sequence[int]) -> torch.Tensor:
        """The log-probability of each of the tokens behind the prompt."""
        logits = self.model(**self._with(further)).logits[0, len(self.ids) - 1 : -1]
        found: torch.Tensor = logits.log_softmax(-1).gather(1, torch.tensor([*further])[:, None])
        return found[:, 0]


def reference(folder: Path, ask: dict, *images: Picture.Image) -> tuple[list, list]:
    """The processor's token ids, and what `generate` answers to them."""
    made = Reference(folder, ask, *images)
    return made.ids, made.answer()
