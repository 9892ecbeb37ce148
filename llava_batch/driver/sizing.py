"""Sizing: how many actors of each kind a cluster's nodes get, and what each of them takes.

One worker's share of the CPUs is a fraction, so that readers, preparers and generators all fit on
the smallest machine; what computes is limited by threads, not by these shares. What keeps a second
worker from a node is its card, and without one the node's memory, which a worker takes most of: so Ray
itself puts one on each node, on those that join later too, and never two where one is lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava_batch.errors import UsageError, counted
from llava_batch.job import Job

READ_CPUS = 0.25
PREPARE_CPUS = 0.25
GENERATE_CPUS = 0.5
WORKERS_MEMORY = 0.8
"""Of a node's memory by Ray's count, what its workers take without a card; the rest is left since two nodes
of one kind differ a little."""
READERS_PER_WORKER = 4
"""Units that are read at once: twice the readers that keep a worker busy. The fastest takes some 50 images
a second (LLaVA-1.5-7B on an H100), and the slowest input, loose files in an object store, gives some 25 a
reader (two requests of 20 ms an image); a tar or Parquet file gives hundreds."""


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
    read_workers: int = READERS_PER_WORKER
    """The most units that are read at once."""

    @property
    def on_gpu(self) -> bool:
        return self.gpus_per_worker > 0


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
    prepare_workers = prepare_workers_beside(job, cpus, gpus, workers)
    read_workers = job.read_workers or READERS_PER_WORKER * workers
    if gpus:
        cores = max(n.get("CPU", 0.0) // max(n.get("GPU", 0.0), 1.0) for n in nodes if n.get("GPU"))
        return Sizing(
            workers=workers,
            prepare_workers=prepare_workers,
            gpus_per_worker=1.0,
            threads_per_worker=max(1, int(cores)),
            max_workers=job.workers,
            read_workers=read_workers,
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
        read_workers=read_workers,
    )


def prepare_workers_beside(job: Job, cpus: float, gpus: int, workers: int) -> int:
    """The most preparing actors beside so many workers; refuses what there is no room for."""
    if gpus and workers > gpus:
        raise UsageError(f"--workers {workers}: the cluster has {counted(gpus, 'GPU')}, one for each worker; "
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
                         f"{most} beside {counted(workers, 'worker')}; give at most {most}")  # fmt: skip
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


def most_workers(cpus: int) -> int:
    """Workers that one machine of so many CPUs and no card has room for, a reader and a preparer beside."""
    return int((cpus - READ_CPUS - PREPARE_CPUS) / GENERATE_CPUS)
