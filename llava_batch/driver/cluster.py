"""The Ray cluster that a run uses: reached or started, measured, and found large enough.

One worker's share of the CPUs is a fraction, so that readers, preparers and generators all fit on
the smallest machine; what computes is limited by threads, not by these shares. What keeps a second
worker from a node is its card, and without one the node's memory, which a worker takes most of: so Ray
itself puts one on each node, on those that join later too, and never two where one is lost.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llava_batch.errors import RunFailed, UsageError, first_line
from llava_batch.job import Job

READ_CPUS = 0.25
PREPARE_CPUS = 0.25
GENERATE_CPUS = 0.5
WORKERS_MEMORY = 0.8
"""Of a node's memory by Ray's count, what its workers take without a card; the rest is left since two nodes
of one kind differ a little."""
GROWTH_LOOK_S = 2.0
"""Between two looks at a cluster that is to grow; it is said every GROWTH_TOLD_S."""
GROWTH_TOLD_S = 30.0
NOTHING_S = 1800.0
"""Without a node, a card or an answer for so long, the run ends, with a sentence."""

_NO_NEWS = "|".join(
    (
        "killed by `ray.kill`",
        "There are infinite retries remaining",
        "has been marked dead because",
        "Raylet is terminated",
    )
)
"""What Ray says, as if it were a failure, of actors that a run lets go when it ends or is stopped; and, by the
hundred lines, of a node that was lost, which `nodes.py` says in one. Its word on any other death is shown."""


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How many actors of each kind, and what each takes."""

    workers: int
    """Generating actors to begin with."""
    prepare_workers: int
    gpus_per_worker: float
    threads_per_worker: int
    """On the largest node; each worker's own are those of its node (`workers/place.py`)."""
    workers_per_node: int = 1
    """Workers that share a node's cores, without a card."""
    memory_per_worker: int = 0
    """Bytes of a node's memory, by Ray's count, that a worker takes; 0: none is asked for."""
    max_workers: int | None = None
    """As many as nodes or cards join; None: no bound."""

    @property
    def on_gpu(self) -> bool:
        return self.gpus_per_worker > 0


def under_job_submit() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected(*, log_to_driver: bool = False) -> Iterator[bool]:
    """Ray, as found in the environment or else a local one, for the length of the block; yields whether
    it is such a one, which no node can join."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the rest is in Ray's own log files
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _NO_NEWS)
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    if ray.is_initialized():
        yield False
        return
    here = "RAY_ADDRESS" not in os.environ and not under_job_submit()
    local: dict[str, Any] = {"include_dashboard": False} if here else {}
    try:
        with _silent_stderr():
            ray.init(log_to_driver=log_to_driver, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise UsageError(
            f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS', 'auto')}: no Ray answers there "
            f"({first_line(error)}); start one, or unset it for a Ray of the run's own"
        ) from error
    try:
        yield here
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr in the block; what fails there raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def size_up(job: Job, *, alone: bool = False) -> Sizing:
    """Actors for the connected cluster; one that grows by itself is waited for, saying so. `alone`: it is
    one node that no other can join.

    Raises:
        UsageError: the cluster is too small for the workers asked for, and cannot grow so far; the
            message says for how many it is large enough.
        RunFailed: it did not grow for NOTHING_S.
    """
    limit = _growth_limit()
    if limit is not None:
        _wait_for_growth(job, limit)
    return fit(job, nodes(), alone=alone, largest=_largest_to_come() if limit is not None else None)


def nodes() -> list[dict[str, float]]:
    """What each living node has by Ray's count: CPU, GPU, memory in bytes."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def total(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """CPUs and GPUs of them all."""
    return {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}


def fit(
    job: Job,
    nodes: Sequence[Mapping[str, float]],
    *,
    alone: bool = False,
    largest: Mapping[str, float] | None = None,
) -> Sizing:
    """Actors for a cluster of nodes with these resources, or UsageError where they do not suffice.
    `largest` is the largest node that an autoscaler may add."""
    have = total(nodes)
    cpus, gpus = have["CPU"], int(have["GPU"])
    memory = 0 if gpus or alone else _memory_of_a_node(nodes, largest)
    workers = job.workers or gpus or max(1, len(_for_workers(nodes, memory)))
    prepare_workers = _prepare_workers(job, cpus, gpus, workers)
    if gpus:
        cores = max(n.get("CPU", 0.0) // max(n.get("GPU", 0.0), 1.0) for n in nodes if n.get("GPU"))
        return Sizing(
            workers=workers,
            prepare_workers=prepare_workers,
            gpus_per_worker=1.0,
            threads_per_worker=max(1, int(cores)),
            max_workers=job.workers,
        )
    each = -(-workers // max(1, len(_for_workers(nodes, memory))))
    demand = int(memory / each)
    return Sizing(
        workers=workers,
        prepare_workers=prepare_workers,
        gpus_per_worker=0.0,
        threads_per_worker=max(1, int(max(n.get("CPU", 0.0) for n in nodes)) // each),
        workers_per_node=each,
        memory_per_worker=demand,
        max_workers=None if not job.workers and _fills_a_node(demand, nodes, largest) else workers,
    )


def _prepare_workers(job: Job, cpus: float, gpus: int, workers: int) -> int:
    """The most preparing actors beside so many workers; refuses what there is no room for."""
    if gpus and workers > gpus:
        raise UsageError(f"--workers {workers}: the cluster has {gpus} GPU(s), one for each worker; "
                         f"give at most {gpus}")  # fmt: skip
    each = PREPARE_CPUS if gpus else GENERATE_CPUS
    spare = cpus - READ_CPUS - PREPARE_CPUS - workers * each
    if spare < 0:
        fits = int((cpus - READ_CPUS - PREPARE_CPUS) / each)
        raise UsageError(f"--workers {workers}: needs {workers * each + READ_CPUS + PREPARE_CPUS:g} "
                         f"CPUs, the cluster has {cpus:g}; give at most {max(fits, 0)}")  # fmt: skip
    most = 1 + int(spare / PREPARE_CPUS)
    wanted = job.prepare_workers or max(1, int(cpus) - workers if gpus else int(cpus) // 2)
    if job.prepare_workers and wanted > most:
        raise UsageError(f"--prepare-workers {wanted}: the cluster's {cpus:g} CPUs have room for "
                         f"{most} beside {workers} worker(s); give at most {most}")  # fmt: skip
    return min(wanted, most)


def _for_workers(nodes: Sequence[Mapping[str, float]], memory: float) -> list[Mapping[str, float]]:
    """The nodes that one worker without a card fits on."""
    return [n for n in nodes if n.get("CPU", 0.0) >= GENERATE_CPUS and n.get("memory", 0) >= memory]


def _memory_of_a_node(
    nodes: Sequence[Mapping[str, float]], largest: Mapping[str, float] | None
) -> float:
    """What the workers of one node take: of the least node's memory, that each may have one; where
    an autoscaler brings larger ones, of those, for a small head is no place for a model."""
    have = [n.get("memory", 0.0) for n in _for_workers(nodes, 0)]
    coming = [] if largest is None else [largest.get("memory", 0.0)]
    return WORKERS_MEMORY * (max(have + coming) if coming else min(have, default=0.0))


def _fills_a_node(
    demand: int, nodes: Sequence[Mapping[str, float]], largest: Mapping[str, float] | None
) -> bool:
    """Whether a worker that takes so much keeps a second one from every node: then as many can be
    asked for as there are nodes or will be."""
    most = max(n.get("memory", 0.0) for n in [*nodes, *([] if largest is None else [largest])])
    return 2 * demand > most


def _growth_limit() -> dict[str, float] | None:
    """What an autoscaling cluster may grow to, by resource; None where the cluster stays as it is."""
    import ray

    # Not a public function, but the one by which Ray Data and Ray Train find out.
    limit: dict[str, float] | None = (
        ray._private.state.state.get_max_resources_from_cluster_config()
    )
    return limit


def _largest_to_come() -> dict[str, float]:
    """The node with the most memory among the kinds that the autoscaler may add."""
    import ray

    config = ray._private.state.state.get_cluster_config()
    groups = [g.resources for g in config.node_group_configs if g.max_count != 0]
    return dict(max(groups, key=lambda has: has.get("memory", 0), default={}))


def _wait_for_growth(job: Job, limit: Mapping[str, float]) -> None:
    """Ask the autoscaler for what the job needs, and wait until it is there."""
    from ray.autoscaler.sdk import request_resources

    now = total(nodes())
    most = {name: max(limit.get(name, 0), now[name]) for name in ("CPU", "GPU")}
    workers = job.workers or 1
    _prepare_workers(job, most["CPU"], int(most["GPU"]), workers)  # refuses what growth cannot help
    gpus = min(workers, int(most["GPU"]))
    cpus = _cpus_for(job, gpus)
    told, began = -math.inf, time.monotonic()
    while now["GPU"] < gpus or now["CPU"] < cpus:
        if time.monotonic() - began >= NOTHING_S:
            raise RunFailed(f"{_waiting_line(now, cpus, gpus)}, and did not grow for "
                            f"{NOTHING_S / 60:g} minutes; see `ray status` for what the autoscaler says, "
                            "and run again: what is committed stands")  # fmt: skip
        if time.monotonic() - told >= GROWTH_TOLD_S:
            told = time.monotonic()
            print(_waiting_line(now, cpus, gpus), file=sys.stderr, flush=True)
            request_resources(bundles=[{"CPU": 0.25}] * math.ceil(4 * cpus) + [{"GPU": 1}] * gpus)
        time.sleep(GROWTH_LOOK_S)
        now = total(nodes())


def _cpus_for(job: Job, gpus: int) -> float:
    """CPUs that one reader, the preparers and the workers take."""
    workers = job.workers or 1
    each = PREPARE_CPUS if gpus else GENERATE_CPUS
    return READ_CPUS + (job.prepare_workers or 1) * PREPARE_CPUS + workers * each


def _waiting_line(have: Mapping[str, float], cpus: float, gpus: int) -> str:
    """What is waited for, with what there is."""
    there, wanted = f"{have.get('CPU', 0.0):g} CPUs", f"{cpus:g} CPUs"
    if gpus:
        there, wanted = f"{there} and {int(have.get('GPU', 0))} GPUs", f"{wanted} and {gpus} GPUs"
    return f"waiting for the cluster to grow: it has {there}, the job needs {wanted}"
