"""`llava-batch estimate caption|vqa|instruct`: the same flags as the job, and what that job would take.

The pilot is the job itself over a sample of its rows: the same actors on the same cluster, without the
last stage. Nothing is written, neither to --output nor beside it.
"""

import json
import random
import sys
import time
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import asdict, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llava_batch.cli.terminal import counted, placed
from llava_batch.driver import cluster, gpus, local_paths
from llava_batch.driver.estimate import (
    Estimate,
    Watched,
    count,
    images_in_all,
    nothing_left,
    times,
)
from llava_batch.driver.heard import hear
from llava_batch.driver.pilot import MOST_ROWS, Pilot
from llava_batch.driver.plan import Plan, make_plan, on_machines
from llava_batch.driver.refusals import refuse_what_is_too_long
from llava_batch.driver.remaining import CONFIDENCE, Interval
from llava_batch.driver.settle import settle
from llava_batch.driver.sizing import Sizing
from llava_batch.errors import RunFailed, UsageError, first_line
from llava_batch.job import Job, bad_flag
from llava_batch.storage import advice
from llava_batch.write.parts import Parts

PILOT = 64
_NOWHERE = "llava-batch-estimate-writes-nothing"
"""The output of a job that names none: a folder that is not there, and is not made."""


def estimate_and_tell(
    job: Job, *, pilot: int, pilot_seed: int, price_per_hour: float | None, as_json: bool
) -> None:
    """Estimate the job and print it, as a table or as JSON."""
    begun = time.time() - time.process_time()
    # Ray prints some of its messages to stdout, where nothing but the JSON may stand.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        made = estimate(job, pilot, pilot_seed, price_per_hour, begun=begun)
    if as_json:
        print(json.dumps(made.as_json(), indent=1))
    else:
        tell(made)


def estimate(
    job: Job, pilot: int, seed: int, price_per_hour: float | None = None, *, begun: float
) -> Estimate:
    """What `job` has to do still and what it takes, by a pilot of so many of its images, drawn by `seed`;
    its process began at Unix time `begun`.

    Raises:
        UsageError: the job cannot be run as asked, a flag of the estimate's own that cannot be used, or a
            storage that fails.
        RunFailed: nothing of the sample could be read.
    """
    if pilot < 1:
        raise bad_flag("pilot", pilot, "give at least 1")
    if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
        raise bad_flag("price_per_hour", price_per_hour, "give a finite number, at least 0")
    job = _placed(job)
    try:
        plan = make_plan(settle(job))
        images_answered = sum(
            plan.ledger.records[unit.name].images - len(unit.retry or ())
            for unit in plan.units
            if unit.name in plan.ledger.records
            and (unit not in plan.todo or unit.retry is not None)
        )
        if not plan.todo:
            return nothing_left(images_answered, price_per_hour)
        refuse_what_is_too_long(plan.settled, plan.checkpoint)
        return _with_pilot(plan, pilot, seed, images_answered, price_per_hour, begun)
    except OSError as error:
        raise UsageError(f"the storage refused: {first_line(error)}; {advice(error)}") from error


def _placed(job: Job) -> Job:
    """The job with an output, which need not be there, and the demo where it names nothing."""
    if job.input and not job.output:
        return job.but(output=_NOWHERE)
    return placed(job, demo="answers")


def _with_pilot(
    plan: Plan, pilot: int, seed: int, answered: int, price: float | None, begun: float
) -> Estimate:
    from llava_batch.read.sample import draw, look_at

    counting = time.time()
    chance = random.Random(seed)
    looks = look_at(plan.todo, plan.reading, chance)
    kinds = count(plan.todo, looks)
    taken_up = _taken_up(plan)
    images = images_in_all(kinds, taken_up, plan.job.limit)
    by_kind = {c.kind: c.images.value for c in kinds}
    most = min(pilot * MOST_ROWS, plan.job.limit or pilot * MOST_ROWS)
    runs = draw(plan.todo, looks, by_kind, most, chance)
    begun += time.time() - counting
    if not runs:
        return nothing_left(answered + taken_up, price)
    if not plan.job.quiet:
        said = f"{'' if images.is_exact else 'about '}{counted(round(images.value), 'image')} to answer"
        print(
            f"{said}; a pilot of {min(pilot, round(images.value)):,} of them begins",
            file=sys.stderr,
        )
    answers = Pilot(len(runs), pilot)
    plan, sizing, watched = _pilot(plan, runs, answers, begun)
    if not answers.images:
        raise RunFailed(f"nothing of the pilot could be read: {answers.problem}")
    watched = replace(watched, is_all=answers.is_all and answers.images >= images.value)
    taken = times(watched, answers.pace.seconds_per_image(), images)
    notes = [*taken.notes]
    if answers.problem:
        notes.append(f"a part of the sample could not be read: {answers.problem}")
    return Estimate(
        counted=kinds,
        images_answered=answered + taken_up,
        images=images,
        rows=answers.of("rows", images),
        errors=answers.of("errors", images),
        prompt_tokens=answers.of("prompt_tokens", images),
        answer_tokens=answers.of("answer_tokens", images),
        times=taken,
        workers=sizing.workers,
        machine=asdict(sizing),
        pilot={
            "images": answers.images,
            "seed": seed,
            "runs": len(answers.whole),
            "seconds": round(watched.last_s - watched.ready_s, 3),
            "slots_full": watched.slots_full,
        },
        price_per_hour=price,
        notes=tuple(notes),
    )


def _taken_up(plan: Plan) -> int:
    """Images of open units that an earlier run answered before it was ended."""
    rows = Parts(plan.ledger).take_up(plan.todo, only_look=True)
    ordinals = ((part.read()["ordinal"].to_pylist() for part in parts) for parts in rows.values())
    return sum(len(set().union(*of_unit)) for of_unit in ordinals)


def _pilot(
    plan: Plan, runs: list[Any], answers: Pilot, begun: float
) -> tuple[Plan, Sizing, Watched]:
    """Answer the sample, until enough is known or there is no more of it."""
    with ExitStack() as held:
        alone = held.enter_context(cluster.connected())
        # These load Ray, which reads only once, in `connected`, what it is to keep to itself.
        from llava_batch.pipeline import answers as answers_of
        from llava_batch.read.sample_source import SampleSource
        from llava_batch.workers import shared_state

        job = plan.job
        placed_at = job.but(output=job.input[0]) if job.output == _NOWHERE else job
        local_paths.refuse_local_paths(placed_at)
        sizing = cluster.size_up(job, alone=alone)
        card = gpus.look() if sizing.on_gpu else None
        plan = on_machines(plan, on_gpu=sizing.on_gpu, card=card)
        shared = shared_state.start()
        # As many readers as the job's: what their starting takes of the cores is a part of the time.
        source = SampleSource(runs, plan.reading, min(sizing.read_workers, len(plan.todo)))
        for batch in answers_of(plan, sizing, shared, source=source):
            now = time.time()
            answers.add(batch, now)
            if answers.is_enough(now):
                break
        stages = hear(shared).stages.get("generate", {})
        ended = time.time()
    last_at, images = answers.pace.last
    ready_at = min(stages.get("first_ready_at", last_at), last_at)
    steps = stages.get("slot_steps", 0)
    watched = Watched(
        ready_s=ready_at - begun,
        last_s=last_at - begun,
        images=images,
        end_s=time.time() - ended,
        is_all=answers.is_all,
        slots_full=stages["occupied_slot_steps"] / steps if steps else None,
    )
    return plan, sizing, watched


def tell(made: Estimate) -> None:
    """Print the estimate as a table, and what it is made of."""
    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "estimate", "from", "to"):
        table.add_column(name, justify="left" if not name else "right")
    for name, figure, digits in _lines(made):
        cells = (figure.value, figure.low, figure.high)
        table.add_row(name, *(_figure(cell, digits) for cell in cells))
    console.print(table)
    for line in _told(made):
        console.print(line, markup=False)


def _lines(made: Estimate) -> list[tuple[str, Interval, int]]:
    """(what, figure, digits after the point)."""
    hours = made.times.all.times(1 / 3600)
    lines = [
        ("images", made.images, 0),
        ("rows", made.rows, 0),
        ("  of them in error", made.errors, 0),
        ("prompt tokens", made.prompt_tokens, 0),
        ("answer tokens", made.answer_tokens, 0),
        ("start-up, s", made.times.start_up, 1),
        ("an image, ms", made.times.per_image.times(1000), 2),
        ("hours", hours, 3),
        ("worker-hours", made.worker_hours, 3),
    ]
    return lines if made.money is None else [*lines, ("money", made.money, 2)]


def _figure(number: float, digits: int) -> str:
    return "?" if number == float("inf") else f"{number:,.{digits}f}"


def _told(made: Estimate) -> list[str]:
    """What the figures are of, a sentence each."""
    lines = [
        f"{c.kind}: {counted(c.units, 'unit')}, {'' if c.is_exact else 'about '}{c.images.value:,.0f} images "
        f"({'exact' if c.is_exact else 'estimated'}: {c.how})"
        for c in made.counted
    ]
    if made.images_answered:
        lines.append(
            f"Answered before, and in no figure: {counted(made.images_answered, 'image')}."
        )
    if made.pilot:
        lines.append(
            f"By a pilot of {counted(made.pilot['images'], 'image')} on {counted(made.workers, 'worker')} "
            f"of {made.machine['gpus_per_worker']:g} GPU and {made.machine['threads_per_worker']} threads; "
            f"bounds for {CONFIDENCE:.0%} of cases."
        )
    return [*lines, *(note[0].upper() + note[1:] + "." for note in made.notes)]
