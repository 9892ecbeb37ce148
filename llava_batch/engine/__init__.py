"""The engine: left-padded, in-flight batched LLaVA generation in torch and transformers.

It knows neither Ray, Arrow nor Pillow: pixels come in as uint8 arrays, prompts as token ids, answers
leave as token ids. Drive it with `submit` and `step`, or with `generate`, the loop over both.
"""

from llava_batch.engine.engine import Engine
from llava_batch.engine.request import Completion, Grid, Image, Request
from llava_batch.engine.stats import Stats

__all__ = ["Completion", "Engine", "Grid", "Image", "Request", "Stats"]
