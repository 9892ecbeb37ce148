"""run(job): read → prepare → generate → write, on one screen."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa

from llava_batch.driver import cluster, gpus, local_paths, standstills
from llava_batch.driver.before_ray import refuse_beforehand
from llava_batch.driver.joined import Joined
from llava_batch.driver.plan import Plan, make_plan, on_machines
from llava_batch.driver.progress import Progress, tell_left_out, tell_start
from llava_batch.driver.publishing import Publishing
from llava_batch.driver.recast import recast
from llava_batch.driver.refusals import refuse_what_is_too_long
from llava_batch.driver.settle import Settled, settle
from llava_batch.driver.several_images import SeveralImages
from llava_batch.driver.signals import Stop
from llava_batch.driver.sizing import GENERATE_CPUS, PREPARE_CPUS, READ_CPUS, Sizing, most_workers
from llava_batch.driver.summary import Summary, provenance, summarise
from llava_batch.errors import RunFailed, UsageError, first_line
from llava_batch.job import Job, require_places
from llava_batch.patience import Patience
from llava_batch.storage import advice, locate, without_credentials
from llava_batch.tables import unpacked
from llava_batch.write.committer import Committer
from llava_batch.write.owner import Ownership
from llava_batch.write.standing import Standing, end_move
from llava_batch.write.writers import Writers

BATCHES_IN_FLIGHT = 4


def run(job: Job) -> Summary:
    """Run `job` to its end, commit what it answers, and say what came of it.

    Raises:
        UsageError: it cannot be run as asked; nothing was started.
        RunFailed: more rows in error than allowed, or units that could not be read.
        KeyboardInterrupt: stopped by a signal; what was whole is committed.
    """
    return run_settled(settle(job))


def run_settled(settled: Settled) -> Summary:
    """`run` for a job whose files were read already."""
    job = settled.job
    require_places(job)
    local_paths.refuse_vanishing_output(job)
    publishing = Publishing(job)
    with Stop() as stop, _failing_with_the_storage(job), ExitStack() as held:
        patience = Patience(job.storage_patience, stop.sleep)
        # The folder is this run's before it is looked into: nobody else commits there meanwhile.
        owner = None if job.dry_run else held.enter_context(_owned(job, patience))
        with _refusing_the_storage():
            plan = make_plan(settled, patience)
            publishing.refuse(plan)
        tell_left_out(plan)
        if owner is not None and not plan.todo:
            return _nothing_to_do(plan, publishing, owner)
        if plan.todo:
            refuse_what_is_too_long(plan.settled, plan.checkpoint)
        refuse_beforehand(plan.settled, most_workers=most_workers(os.cpu_count() or 1))
        tell_start(plan)
        with cluster.connected(quiet=job.quiet) as alone:
            stop.take_back()
            local_paths.refuse_local_paths(job)
            sizing = cluster.size_up(job, alone=alone)
            card = gpus.look() if sizing.on_gpu else None
            with _refusing_the_storage():
                plan = on_machines(plan, on_gpu=sizing.on_gpu, card=card)
            if owner is None:
                return summarise(plan, sizing, None, [], 0.0, status="dry run")
            return _run(plan, sizing, stop, owner, publishing)


def _nothing_to_do(plan: Plan, publishing: Publishing, owner: Ownership) -> Summary:
    """All that the input holds is answered: neither Ray nor torch is loaded to say so. What is not
    published yet is."""
    if plan.recast or not plan.ledger.is_tidy:
        _begin(plan)
        plan.ledger.rest()
    plan.ledger.finish()
    publishing.publish(plan, owner.check)
    if publishing.problem:
        raise RunFailed(publishing.problem)
    return summarise(plan, None, None, [], 0.0, status="complete", published=publishing.done)


def _begin(plan: Plan) -> None:
    """The first writes: what the run is, and the kept columns' new types."""
    plan.ledger.begin(plan.todo, plan.reading.keep, recasting=plan.recast)
    end_move(plan.ledger)  # where a kill kept the last run from it
    if plan.recast:
        recast(plan.ledger, plan.reading.keep)


@contextmanager
def _failing_with_the_storage(job: Job) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(
            f"{without_credentials(job.output)}: the storage failed ({first_line(error)}); what was "
            f"committed stands, run again to go on; {advice(error)}"
        ) from error


@contextmanager
def _owned(job: Job, patience: Patience) -> Iterator[Ownership]:
    """The output folder as this run's own: the first thing that is written there."""
    with ExitStack() as held:
        out = locate(job.output)
        try:
            owner = held.enter_context(Ownership(out, patience))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else first_line(error)
            what = (
                "give another folder, or permission to write there"
                if out.is_local
                else advice(error)
            )
            raise UsageError(
                f"--output {out.shown}: cannot be written to ({why}); {what}"
            ) from error
        yield owner


@contextmanager
def _refusing_the_storage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"the storage refused: {first_line(error)}; {advice(error)}") from error


def _run(
    plan: Plan, sizing: Sizing, stop: Stop, owner: Ownership, publishing: Publishing
) -> Summary:
    from llava_batch.driver.nodes import NodeWatch
    from llava_batch.workers import shared_state
    from llava_batch.workers.prometheus import RunMetrics

    _begin(plan)
    shared = shared_state.start()
    standing = None
    if plan.work.standing:
        anew = frozenset(unit.name for unit in plan.todo if unit.retry is None)
        standing = Standing(plan.ledger, plan.work.standing, anew)
    joined = None if plan.questions is None else Joined(plan.questions, plan.ledger)
    committer = Committer(
        plan.ledger, plan.todo, plan.reading.keep, provenance(plan),
        on_commit=None if joined is None else joined.mark, standing=standing,
        writers=Writers(plan.ledger.patience), check=owner.check,
    )  # fmt: skip
    started, status = time.time(), "stopped"
    metrics = RunMetrics()
    several = None
    watch = NodeWatch(needs="GPU" if sizing.on_gpu else "CPU", wait_s=standstills.limit_s(plan.job))
    with Progress(plan, committer, shared) as progress, watch as nodes:
        try:
            several = None if joined is None else _several_images(plan, joined)
            todo, before = committer.take_up()
            plan = replace(plan, work=replace(plan.work, todo=todo))
            if several is not None:
                for rows in before:
                    several.check(rows)
            for batch in standstills.told(answers(plan, sizing, shared, standing), sizing):
                with stop.whole():
                    owner.check()
                    if several is not None:
                        several.check(batch)
                    committer.add(batch)
                metrics.update(committer.tally)
            with stop.whole():
                committer.close()
            if not committer.tally.failed_units:
                plan.ledger.finish()
            publishing.publish(plan, owner.check)
            status = "complete"
        except KeyboardInterrupt:
            committer.keep_safe()
            committer.end()
            raise
        finally:
            committer.end(cancel=True)
            summary = summarise(
                plan, sizing, committer, progress.history, started, status=status, shared=shared,
                joined=joined, several=several, published=publishing.done, nodes=nodes,
                left=progress.left(),
            )  # fmt: skip
    problems = [summary.problem(plan.job.max_error_rate), publishing.problem]
    if any(problems):
        raise RunFailed("; ".join(filter(None, problems)))
    return summary


def _several_images(plan: Plan, joined: Joined) -> SeveralImages:
    """What watches over the file's questions as the rows come."""
    assert plan.questions is not None
    anew = {unit.name for unit in plan.todo if unit.retry is None}
    return SeveralImages(
        plan.questions,
        refuse=not plan.job.join_anywhere,
        before=joined.begin(anew),
        retried={unit.name for unit in plan.todo} - anew,
    )


def answers(
    plan: Plan, sizing: Sizing, shared: Any, standing: Standing | None = None, source: Any = None
) -> Iterator[pa.Table]:
    """The answer rows of the plan's units, as they come; with a `source` like
    `UnitSource`, of the rows that it reads in their place."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from llava_batch.generate.actor import Generate
    from llava_batch.prepare.actor import Prepare
    from llava_batch.prepare.stores import Stores
    from llava_batch.read.source import UnitSource

    job = local_paths.for_workers(plan.job)
    _set_up_ray_data(job, on_gpu=sizing.on_gpu)
    source = source or UnitSource(plan.todo, plan.reading, shared)
    rows = ray.data.read_datasource(
        source,
        num_cpus=READ_CPUS,
        compute=TaskPoolStrategy(size=min(sizing.read_workers, source.num_tasks)),
        override_num_blocks=source.num_tasks,  # or each read's output is cut for more
    )
    prepared = rows.map_batches(
        Prepare,
        fn_constructor_args=(
            job,
            shared,
            plan.lookup(),
            plan.settled.recipe,
            Stores.of(job),
            standing and standing.answers,
        ),
        batch_size=1,  # given, so that Ray Data makes no one step of reading and preparing
        batch_format="pyarrow",
        num_cpus=PREPARE_CPUS,
        compute=ActorPoolStrategy(min_size=1, max_size=sizing.prepare_workers),
    )
    answered = prepared.map_batches(
        Generate,
        fn_constructor_args=(job, shared, sizing.workers_per_node, plan.slot_tokens),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=PREPARE_CPUS if sizing.on_gpu else GENERATE_CPUS,
        num_gpus=sizing.gpus_per_worker,
        memory=sizing.memory_per_worker or None,
        runtime_env={"env_vars": _openmp(job, on_gpu=sizing.on_gpu)},
        compute=ActorPoolStrategy(
            min_size=sizing.workers,
            max_size=sizing.max_workers,
            max_tasks_in_flight_per_actor=2 * BATCHES_IN_FLIGHT,
            max_concurrent_calls_per_actor=BATCHES_IN_FLIGHT,
        ),
    )
    yield from map(unpacked, as_they_come(answered))


def as_they_come(answered: Any) -> Iterator[pa.Table]:
    """A dataset's batches. By default Ray Data hands one out once the next is there: on CPU a minute's answers, which a
    kill would lose."""
    return iter(answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))


def _openmp(job: Job, *, on_gpu: bool) -> dict[str, str]:
    """How long a worker's OpenMP threads that find no work spin before they sleep; read when torch is loaded.

    Where they are the engine, some 8 ms: until the other one is back whose core another process, a decoding worker say,
    has taken, for to be woken takes longer (benchmarks/LOG.md). Beside a card some 0.3 ms, and with quantized weights:
    their small products are a parallel region each, and on a CPU that others share those that spin hold up the one
    that is waited for.
    """
    return {"GOMP_SPINCOUNT": "10000" if on_gpu or job.quantization else "300000"}


def _set_up_ray_data(job: Job, *, on_gpu: bool) -> None:
    import logging

    from ray.data import DataContext

    from llava_batch.driver import pauses

    context = DataContext.get_current()
    pauses.set_up(context, on_gpu=on_gpu)
    # Each row is a packed batch, and a block by itself: the stages bound what is in it.
    context.target_max_block_size = 1
    # A worker killed while it loads is replaced; by default it ends the job.
    context.max_consecutive_actor_init_deaths = job.max_tries
    context.execution_no_progress_timeout_s = standstills.limit_s(job)
    # A worker that has its model keeps it: only those that join later are asked for by need.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
