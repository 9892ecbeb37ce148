"""Plan: a settled job, checked against what there is → what exactly will be done.

`make_plan` asks what costs nothing: the output folder, the inputs, their columns, the questions; neither
Ray nor torch is loaded for it. Only where something is left to do are the machines looked at, and
`on_machines` refuses what they cannot do. No actor starts before both.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver import same_run
from llava_batch.driver.gpus import Card
from llava_batch.driver.joined import refuse_unjoined
from llava_batch.driver.needs import slot_tokens
from llava_batch.driver.recast import needs_recast
from llava_batch.driver.refusals import refuse_what_does_not_fit, refuse_what_is_missing
from llava_batch.driver.settle import Settled
from llava_batch.driver.several_images import refuse_shared_names
from llava_batch.generate.choices import choices_of
from llava_batch.job import Job
from llava_batch.patience import BRIEF, Patience
from llava_batch.prepare.image_processor import load_image_processor
from llava_batch.prompts.asks import Lookup
from llava_batch.prompts.questions import Questions, read_questions
from llava_batch.read.columns import keep_schema, kept_names, require_columns
from llava_batch.read.find import Inputs, gather, units_of
from llava_batch.read.gather import Gathered
from llava_batch.read.kinds import first_row, refuse_keys_of_tables, refuse_without_images
from llava_batch.read.lake.table import AsOf
from llava_batch.read.reading import Reading
from llava_batch.storage import locate
from llava_batch.unit import Unit
from llava_batch.write.changes import Work, compare
from llava_batch.write.ledger import Ledger

_FIRST_UNITS = 16
"""Units looked into for the columns that prompts and `--keep` name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do. Without a unit in `todo`, nothing else was looked at."""

    settled: Settled
    checkpoint: Checkpoint
    ledger: Ledger
    inputs: Inputs
    work: Work
    reading: Reading
    questions: Questions | None = None
    recast: bool = False
    """Whether committed tables get the kept columns' new types first."""
    card: Card | None = None
    """The least card of the cluster; None without one, or where none could be looked at."""

    @property
    def job(self) -> Job:
        return self.settled.job

    def lookup(self) -> Lookup | None:
        """How a worker finds an image's questions, where they come from a file."""
        return None if self.questions is None else partial(_questions_of, self.questions)

    @property
    def todo(self) -> list[Unit]:
        return self.work.todo

    @property
    def units(self) -> list[Unit]:
        return self.inputs.units

    @property
    def num_units(self) -> int:
        return len(self.units)

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take on a worker's device, as its headers say, in the job's dtype and
        quantization."""
        import torch

        from llava_batch.engine.model import memory

        tensors = memory.headers(self.checkpoint.folder)
        return memory.weights_bytes(tensors, getattr(torch, self.job.dtype), self.job.quantization)

    @property
    def slot_tokens(self) -> int | None:
        """Tokens that a row takes in the engine, as far as the job tells."""
        return slot_tokens(self.settled, self.checkpoint)

    def outlook(self) -> dict[str, Any]:
        """The work ahead when the run began."""
        kinds = Counter(unit.kind for unit in self.todo)
        return {
            "units_todo": dict(kinds),
            "first_units": [unit.name for unit in self.todo[:3]],
            "loose_images": sum(len(unit.members) for unit in self.todo),
            "rows_to_retry": sum(len(unit.retry or ()) for unit in self.todo),
            "card": self.card and self.card.name,
            "several_images_are_known": self.checkpoint.is_trained_on_several_images,
            "notes": [*self.settled.notes, *(self.questions.notes if self.questions else ())],
        }


def make_plan(settled: Settled, patience: Patience = BRIEF) -> Plan:
    """What is to be done, by the input and the output folder alone.

    Where the dtype is `auto` still, the folder's own is taken: what was answered so stands. `patience` is
    what the run will have with its output's storage.

    Raises:
        UsageError: anything there that keeps the job from running as asked.
    """
    job = settled.job
    checkpoint = Checkpoint.find(job)
    settled = settled.but(revision=checkpoint.commit or job.revision)  # the same on every node
    ledger = Ledger(locate(job.output), job.format, patience)
    with _meanwhile(partial(_gathered, settled, ledger)) as gathered:
        ledger.load(overwrite=job.overwrite)
        if job.dtype == "auto" and ledger.held is not None:
            settled = settled.but(dtype=ledger.held.settings["dtype"])
        _answer_under(ledger, settled, checkpoint)
        inputs = _units_of(settled, ledger, gathered())
    del gathered  # it holds as many names again as the units have
    work = compare(
        ledger,
        inputs.units,
        on_change=job.on_change,
        overwrite=job.overwrite,
        limit=job.limit,
        retry_errors=job.retry_errors,
    )
    recorded = ledger.keep or pa.schema([])
    keep = _keep(settled, ledger, inputs.units) if work.todo or job.keep else recorded
    reading = Reading.of(job, settled.columns, keep)
    refuse_without_images(work.todo, reading)
    refuse_keys_of_tables(work.todo, inputs.units, job.key_column)
    questions = None
    if work.todo:
        questions = _read_questions(job, ledger, inputs.units) if job.questions else None
        checkpoint.renderer(job.template)(["<image>\nq"], job.system)
        choices_of(job, checkpoint)
        load_image_processor(checkpoint)
    return Plan(
        settled=replace(settled, job=settled.job.but(dtype=job.dtype)),
        checkpoint=checkpoint,
        ledger=ledger,
        inputs=inputs,
        work=work,
        reading=reading,
        questions=questions,
        recast=needs_recast(ledger, keep, overwrite=job.overwrite),
    )


def inputs_of(settled: Settled, ledger: Ledger) -> Inputs:
    """The job's inputs, in the units that the folder knows them by.

    Raises:
        UsageError: as `read.find` says.
    """
    return _units_of(settled, ledger, _gathered(settled, ledger))


@contextmanager
def _meanwhile(work: Callable[[], Gathered]) -> Iterator[Callable[[], Gathered]]:
    """The input's files, listed while the output folder is read: a hundred thousand names are a hundred requests
    one after the other, for either. Where the block fails its error does not wait for the listing."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool.submit(work).result
    finally:
        pool.shutdown(wait=False)


def _gathered(settled: Settled, ledger: Ledger) -> Gathered:
    job = settled.job
    return gather(job.input, partitions=job.partition, output=ledger.out)


def _units_of(settled: Settled, ledger: Ledger, gathered: Gathered) -> Inputs:
    job = settled.job
    return units_of(
        gathered,
        ledger.before.members,
        ledger.before.split,
        rows=ledger.before.rows,
        answered=ledger.before.units_of,
        as_of=AsOf(
            snapshot=job.snapshot,
            image_column=job.image_column,
            key_column=job.key_column,
            columns=(*settled.columns, *kept_names(job.keep)),
        ),
    )


def on_machines(plan: Plan, *, on_gpu: bool, card: Card | None = None) -> Plan:
    """The plan on the machines that there are; `card` is what the workers have, if it is known.

    Raises:
        UsageError: they cannot run it, or would answer in another dtype than the folder holds.
    """
    settled = plan.settled.on(on_gpu=on_gpu, card=card)
    refuse_what_is_missing(settled.job, on_gpu=on_gpu, card=card)
    needed = slot_tokens(settled, plan.checkpoint)
    refuse_what_does_not_fit(settled.job, plan.checkpoint, card, needed)
    if plan.ledger.held is None:
        _answer_under(plan.ledger, settled, plan.checkpoint)
    elif settled.job.dtype != plan.ledger.settings["dtype"]:
        plan = make_plan(
            settled, plan.ledger.patience
        )  # refused, or with --overwrite more is open than was thought
    return replace(plan, settled=settled, card=card)


def _answer_under(ledger: Ledger, settled: Settled, checkpoint: Checkpoint) -> None:
    """Set the run's settings against the folder's; refuse others."""
    by_version = partial(same_run.answer_settings, settled, checkpoint)
    settings = by_version()
    mark, as_before = same_run.fingerprint_in(
        ledger, settings, by_version, overwrite=settled.job.overwrite
    )
    ledger.answer_under(settings, mark, same_run.VERSION, as_before=as_before)


def _read_questions(job: Job, ledger: Ledger, units: list[Unit]) -> Questions:
    """The questions of the job's file, for these units and those that were answered before."""
    assert job.questions is not None
    names = {*ledger.records, *(unit.name for unit in units)}
    questions = read_questions(job.questions).among(names)
    refuse_unjoined(questions, units)
    if not job.join_anywhere:
        refuse_shared_names(questions, units)
    return questions


def _questions_of(
    questions: Questions, unit: str, key: str, sha256: str | None
) -> list[tuple[str, str]]:
    return [(q.question_id, q.text) for q in questions.of(unit=unit, key=key, sha256=sha256)]


def _keep(settled: Settled, ledger: Ledger, units: list[Unit]) -> pa.Schema:
    """The kept columns' types, as an earlier run fixed them or as the first unit has them."""
    job, columns = settled.job, settled.columns
    if not units:  # what is recorded stands, be there nothing to read today
        return ledger.keep or pa.schema([])
    if not (job.keep or columns):
        return pa.schema([])
    nothing_kept = Reading.of(job, [*columns, *kept_names(job.keep)], pa.schema([]))
    # The first units may be damaged: the first that has columns speaks for all.
    firsts = ((unit, first_row(unit, nothing_kept)) for unit in units[:_FIRST_UNITS])
    unit, row = next((first for first in firsts if first[1]), (units[0], {}))
    require_columns(columns, "--question-column" if job.question_column else "--prompt", unit, row)
    return keep_schema(job.keep, unit, row, ledger.keep)
