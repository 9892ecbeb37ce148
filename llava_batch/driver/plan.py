"""Plan: a job, checked against what there is → what exactly will be done. No actor starts before.

Everything that can be refused is refused here: inputs, model, template, columns, output folder.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.gpus import Card
from llava_batch.driver.recast import needs_recast
from llava_batch.driver.refusals import refuse_what_does_not_fit, refuse_what_is_missing
from llava_batch.errors import UsageError
from llava_batch.generate.json_schema import read_schema
from llava_batch.ids import name_of
from llava_batch.job import Job
from llava_batch.patience import BRIEF, Patience
from llava_batch.prompts.asks import Lookup, prompt_columns
from llava_batch.prompts.presets import preset
from llava_batch.prompts.questions import Questions, read_questions
from llava_batch.prompts.recipe import Recipe, load_recipe
from llava_batch.read.columns import keep_schema, kept_names, require_columns
from llava_batch.read.find import find_units
from llava_batch.read.source import Reading, count_rows, first_row
from llava_batch.storage import locate, read_bytes
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger

_FIRST_UNITS = 16
"""Units looked into for the columns that prompts and `--keep` name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do. `todo` are the units to answer, `done` how many need nothing."""

    job: Job
    checkpoint: Checkpoint
    ledger: Ledger
    reading: Reading
    todo: list[Unit]
    num_units: int
    num_changed: int
    """Units answered before from an input that has changed since; they are answered again."""

    questions: Questions | None = None
    recipe: Recipe | None = None
    recast: bool = False
    """Whether committed tables get the kept columns' new types first."""
    card: Card | None = None
    """The least card of the cluster; None without one, or where none could be looked at."""

    def lookup(self) -> Lookup | None:
        """How a worker finds an image's questions, where they come from a file."""
        return None if self.questions is None else partial(_questions_of, self.questions)

    @property
    def num_done(self) -> int:
        return self.num_units - len([u for u in self.todo if u.retry is None])

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take on a worker's device, as its headers say, in the job's dtype and
        quantization."""
        import torch

        from llava_batch.engine.model import memory

        tensors = memory.headers(self.checkpoint.folder)
        return memory.weights_bytes(tensors, getattr(torch, self.job.dtype), self.job.quantization)

    def outlook(self) -> dict[str, Any]:
        """What `--dry-run` tells of the work ahead."""
        kinds = Counter(unit.kind for unit in self.todo)
        return {
            "units_todo": dict(kinds),
            "first_units": [unit.name for unit in self.todo[:3]],
            "loose_images": sum(len(unit.members) for unit in self.todo),
            "rows_to_retry": sum(len(unit.retry or ()) for unit in self.todo),
            "weights_bytes": self.weights_bytes,
            "card": self.card and self.card.name,
            "notes": [] if self.questions is None else list(self.questions.notes),
        }


def make_plan(
    job: Job, *, on_gpu: bool, card: Card | None = None, patience: Patience = BRIEF
) -> Plan:
    """Check `job` and settle what is to be done; `card` is what the workers have, if it is known, and
    `patience` what the run will have with its output's storage.

    Raises:
        UsageError: anything that keeps the job from running as asked.
    """
    recipe = load_recipe(job.recipe) if job.recipe else None
    job = settled(job, recipe, on_gpu=on_gpu, card=card)
    refuse_what_is_missing(job, on_gpu=on_gpu, card=card)
    columns = prompt_columns(job, recipe)
    checkpoint = Checkpoint.find(job)
    refuse_what_does_not_fit(job, checkpoint, card)
    checkpoint.renderer(job.template)(["<image>\nq"], job.system)
    job = job.but(revision=checkpoint.commit or job.revision)  # the same on every node
    out = locate(job.output)
    ledger = Ledger(out, job.format, fingerprint_settings(job, checkpoint), patience)
    ledger.load(overwrite=job.overwrite)
    units = find_units(job.input, ledger.members)
    ledger.compare(units, overwrite=job.overwrite)
    reading = Reading.of(job, columns, _keep(job, ledger, units, columns))
    todo = [u for u in units if not ledger.is_committed(u)]
    changed = [u for u in todo if u.name in ledger.records and not job.overwrite]
    if job.retry_errors:
        todo += _with_errors(ledger, [u for u in units if ledger.is_committed(u)])
    if job.limit is not None:
        todo = _first_images(todo, reading, job.limit)
    return Plan(
        job=job,
        checkpoint=checkpoint,
        ledger=ledger,
        reading=reading,
        todo=todo,
        num_units=len(units),
        num_changed=len(changed),
        questions=read_questions(job.questions) if job.questions else None,
        recipe=recipe,
        recast=needs_recast(ledger, reading.keep, overwrite=job.overwrite),
        card=card,
    )


def _questions_of(
    questions: Questions, unit: str, key: str, sha256: str | None
) -> list[tuple[str, str]]:
    return [(q.question_id, q.text) for q in questions.of(unit=unit, key=key, sha256=sha256)]


def settled(job: Job, recipe: Recipe | None, *, on_gpu: bool, card: Card | None = None) -> Job:
    """The job with every `auto` that changes answers put in, and what its preset and recipe say of
    flags that were not given; of a schema its text, since workers may not see the file."""
    if job.dtype == "auto":
        from llava_batch.engine.model.load import BFLOAT16_CAPABILITY

        half = "float16" if card and card.capability < BFLOAT16_CAPABILITY else "bfloat16"
        job = job.but(dtype=half if on_gpu else "float32")
    if job.json_schema:
        job = job.but(json_schema=read_schema(job.json_schema))
    if job.preset is not None:
        chosen = preset(job.preset)
        names = ("suffix", "system", "image_aspect", "max_new_tokens")
        job = _filled_in(job, {name: getattr(chosen, name) for name in names})
    if recipe is not None:
        wanted = {name: getattr(recipe, name) for name in _RECIPE_SETTINGS}
        job = _filled_in(job, wanted | {"num_samples": recipe.samples})
    return job


_RECIPE_SETTINGS = ("system", "temperature", "top_p", "max_new_tokens")


def _filled_in(job: Job, wanted: dict[str, Any]) -> Job:
    """`wanted` where the job has its defaults still."""
    plain = Job()
    return job.but(**{n: v for n, v in wanted.items() if getattr(job, n) == getattr(plain, n)})


def fingerprint_settings(job: Job, checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that would change rows or answers; files among them by their content."""
    settings = job.answer_settings()
    del settings["revision"]
    settings["model"] = checkpoint.commit or folder_hash(checkpoint.folder)
    settings["model_name"] = job.model
    settings["keep"] = kept_names(job.keep)  # their types stand in the ledger
    if job.template not in ("auto", "llava-1.5", "checkpoint"):
        settings["template"] = _file_hash(job.template)
    if job.questions:
        settings["questions"] = _file_hash(job.questions)
    if job.json_schema:
        schema = read_schema(job.json_schema)
        settings["json_schema"] = hashlib.sha256(schema.encode()).hexdigest()[:16]
    if job.recipe:
        settings["recipe"] = repr(load_recipe(job.recipe))
    return settings


def folder_hash(folder: str) -> str:
    """A hash of a checkpoint's files: names, sizes, and the first 64 KiB of each."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model", ".bin"):
            with path.open("rb") as file:
                digest.update(f"{path.name} {os.path.getsize(path)}\n".encode())
                digest.update(file.read(65536))
    return digest.hexdigest()[:16]


def _file_hash(text: str) -> str:
    at = locate(text)
    data = read_bytes(at.fs, at.path)
    if data is None:
        raise UsageError(f"{at.shown}: no such file; check the path")
    return hashlib.sha256(data).hexdigest()[:16]


def _keep(job: Job, ledger: Ledger, units: list[Unit], columns: list[str]) -> pa.Schema:
    """The kept columns' types, as an earlier run fixed them or as the first unit has them."""
    if not units:
        return ledger.keep or pa.schema(
            []
        )  # what is recorded stands, be there nothing to read today
    if not (job.keep or columns):
        return pa.schema([])
    nothing_kept = Reading.of(job, [*columns, *kept_names(job.keep)], pa.schema([]))
    # The first units may be damaged: the first that has columns speaks for all.
    firsts = ((unit, first_row(unit, nothing_kept)) for unit in units[:_FIRST_UNITS])
    unit, row = next((first for first in firsts if first[1]), (units[0], {}))
    require_columns(columns, "--question-column" if job.question_column else "--prompt", unit, row)
    return keep_schema(job.keep, unit, row, ledger.keep)


def _with_errors(ledger: Ledger, units: list[Unit]) -> list[Unit]:
    """The committed units that have rows in error, set to read only those rows' images."""
    again = []
    for unit in units:
        table = ledger.read_table(unit.name) if ledger.records[unit.name].errors else None
        if table is None:
            continue
        bad = table.filter(pc.equal(table["status"], "error"))["id"].to_pylist()
        names = frozenset(name_of(ident, unit.name) for ident in bad)
        again.append(replace(unit, retry=names))
    return again


def _first_images(units: list[Unit], reading: Reading, limit: int) -> list[Unit]:
    """The first units of `units` that hold `limit` images, the last one cut."""
    cut, left = [], limit
    for unit in units:
        if left <= 0:
            break
        count = count_rows(unit, reading, left)
        cut.append(replace(unit, limit=count))
        left -= count
    return cut
