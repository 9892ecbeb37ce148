"""The demo model's held-out scenes through the engine, for engine.py and quantization.py.

Captions, questions and dialogues of scenes that no training drew: the answers that are letter for
letter those of float32, and how many are right in each dtype.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoProcessor

from llava_batch.demo import model_path
from llava_batch.demo.training.evaluate import evaluate, held_out, overall
from llava_batch.engine import Engine, Request

MAX_NEW_TOKENS = 48


class Answers:
    """The engine as `evaluate` wants it, keeping every answer that it gave."""

    def __init__(self, **options: Any) -> None:
        """options: `Engine.load`'s."""
        self.engine = Engine.load(model_path(), max_tokens=256, **options)
        self.processor = AutoProcessor.from_pretrained(model_path(), backend="pil")
        self.texts: list[str] = []

    def __call__(self, asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        requests = (self.request(n, *pair) for n, pair in enumerate(asked))
        done = {int(c.id): c for c in self.engine.generate(requests)}
        ids = [done[number].token_ids for number in range(len(asked))]
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        self.texts += texts
        return texts

    def request(self, number: int, image: Image.Image, prompt: str) -> Request:
        """One picture and its prompt, the pixels as the pipeline sends them."""
        plain = {"do_rescale": False, "do_normalize": False}
        made = self.processor(images=[image], text=[prompt], images_kwargs=plain)
        return Request(
            id=str(number),
            pixels=np.stack([np.asarray(p) for p in made["pixel_values"]]).astype(np.uint8),
            prompt_ids=made["input_ids"][0],
            max_new_tokens=MAX_NEW_TOKENS,
        )


def agreement(dtype: str, num_scenes: int, **options: Any) -> dict[str, Any]:
    """Answers in `dtype` beside those in float32: how many are equal, and how many are right."""
    scenes = held_out(num_scenes)
    plain, other = (Answers(dtype=name, **options) for name in ("float32", dtype))
    right = {name: overall(evaluate(a, scenes)) for name, a in (("float32", plain), (dtype, other))}
    same = sum(a == b for a, b in zip(plain.texts, other.texts, strict=True))
    return {
        "agreement_dtype": dtype,
        "agreement_answers": len(plain.texts),
        "agreement": same / len(plain.texts),
        "accuracy": right[dtype],
        "accuracy_float32": right["float32"],
    }


def told(found: dict[str, Any]) -> str:
    """The figures as a line."""
    return (
        f"demo model in {found['agreement_dtype']}: {100 * found['agreement']:.1f} % of "
        f"{found['agreement_answers']} answers as in float32; {100 * found['accuracy']:.1f} % right "
        f"against {100 * found['accuracy_float32']:.1f} %"
    )
