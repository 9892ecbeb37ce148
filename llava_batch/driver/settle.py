"""Settle: a job as it was given → the job as it will run, with the files that it names read, once.

What a preset or a recipe says takes the place of what was left at its default, a schema's file its
text. Whatever comes after is handed the result; only the dtype waits for the machines (`on`).
"""

import os
from dataclasses import dataclass, replace
from typing import Any, Self

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.gpus import Card
from llava_batch.generate.json_schema import read_schema
from llava_batch.job import Job, bad_flag
from llava_batch.prompts.asks import prompt_columns
from llava_batch.prompts.presets import preset
from llava_batch.prompts.recipe import Recipe, load_recipe

PRESET_SETTINGS = ("suffix", "system", "image_aspect", "max_new_tokens")
_SHARED_PRESET_SETTINGS = ("suffix", "max_new_tokens")
"""Those that are the benchmark's, whatever family is asked; the others are the evaluated model's own."""
_RECIPE_SETTINGS = ("system", "temperature", "top_p", "max_new_tokens")


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A job with everything put in that it only names. `columns` are what its prompts need of a row."""

    job: Job
    recipe: Recipe | None
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What is to be said of how it was settled."""

    def but(self, **changes: Any) -> Self:
        """A copy whose job has these `changes`, of fields that nothing else was settled by."""
        return replace(self, job=self.job.but(**changes))

    def on(self, *, on_gpu: bool, card: Card | None) -> Self:
        """With the dtype that `auto` means there; `card` is None where none could be looked at."""
        if self.job.dtype != "auto":
            return self
        if not on_gpu:
            return self.but(dtype="float32")
        from llava_batch.engine.model.load import BFLOAT16_CAPABILITY

        old = card is not None and card.capability < BFLOAT16_CAPABILITY
        return self.but(dtype="float16" if old else "bfloat16")


def settle(job: Job) -> Settled:
    """Read what `job` names: its recipe, its schema, its preset.

    Raises:
        UsageError: one of them is not there or cannot be used; braces in a prompt that cannot be read; a
            revision of a model that has none.
    """
    if job.revision and (job.model == "demo" or os.path.isdir(job.model)):
        what = "is built in" if job.model == "demo" else "is a local folder"
        raise bad_flag("revision", job.revision, f"--model {job.model} {what}, of which there is one; "
                       "drop it, or give a hub id")  # fmt: skip
    recipe = load_recipe(job.recipe) if job.recipe else None
    if job.json_schema:
        job = job.but(json_schema=read_schema(job.json_schema))
    notes = []
    if job.preset is not None:
        chosen, family = preset(job.preset), Checkpoint.find(job).model_type
        names = PRESET_SETTINGS if family == chosen.family else _SHARED_PRESET_SETTINGS
        job = _filled_in(job, {name: getattr(chosen, name) for name in names})
        if family != chosen.family:
            notes.append(
                f"--preset {job.preset} is the original evaluation of {chosen.family} (LLaVA-1.5): of a "
                f"{family} model only what follows the question and the length of answers are taken from it."
            )
    if recipe is not None:
        wanted = {name: getattr(recipe, name) for name in _RECIPE_SETTINGS}
        job = _filled_in(job, wanted | {"num_samples": recipe.samples})
    columns = tuple(prompt_columns(job, recipe))
    return Settled(job=job, recipe=recipe, columns=columns, notes=tuple(notes))


def _filled_in(job: Job, wanted: dict[str, Any]) -> Job:
    """`wanted` where the job has its defaults still."""
    plain = Job()
    return job.but(**{n: v for n, v in wanted.items() if getattr(job, n) == getattr(plain, n)})
