"""The Ray cluster that a run uses: reached or started, measured, and found large enough.

One worker's share of the CPUs is a fraction, so that readers, preparers and generators all fit on
the smallest machine; what computes is limited by threads, not by these shares.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llava_batch.errors import UsageError
from llava_batch.job import Job

READ_CPUS = 0.25
PREPARE_CPUS = 0.25
GENERATE_CPUS = 0.5


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How many actors of each kind, and what each takes."""

    workers: int
    prepare_workers: int
    gpus_per_worker: float
    threads_per_worker: int

    @property
    def on_gpu(self) -> bool:
        return self.gpus_per_worker > 0


def under_job_submit() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected(*, log_to_driver: bool = False) -> Iterator[None]:
    """Ray, as found in the environment or else a local one, for the length of the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the rest is in Ray's own log files
    import ray

    if ray.is_initialized():
        yield
        return
    here = "RAY_ADDRESS" not in os.environ and not under_job_submit()
    local: dict[str, Any] = {"include_dashboard": False} if here else {}
    with _silent_stderr():
        ray.init(log_to_driver=log_to_driver, logging_level=logging.ERROR, **local)
    try:
        yield
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


def size_up(job: Job) -> Sizing:
    """Actors for the connected cluster.

    Raises:
        UsageError: the cluster is too small for the workers asked for; the message says for how many
            it is large enough.
    """
    import ray

    have = ray.cluster_resources()
    cpus, gpus = have.get("CPU", 0.0), int(have.get("GPU", 0))
    workers = job.workers or max(gpus, 1)
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
    return Sizing(
        workers=workers,
        prepare_workers=min(wanted, most),
        gpus_per_worker=1.0 if gpus else 0.0,
        threads_per_worker=max(1, int(cpus) // workers),
    )


def refuse_local_paths(job: Job) -> None:
    """Refuse paths that only one node could see, and those that vanish with a submitted job.

    Raises:
        UsageError: a relative output under `ray job submit`, or a local path on several nodes.
    """
    import ray

    from llava_batch.storage import locate

    if under_job_submit() and "://" not in job.output and not os.path.isabs(job.output):
        raise UsageError(
            f"--output {job.output}: under `ray job submit` a relative path lies in a temporary "
            "folder that is deleted with the job; give an absolute path or a URI"
        )
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if num_nodes < 2 or job.shared_filesystem:
        return
    for flag, text in [("--output", job.output), *(("--input", i) for i in job.input)]:
        if locate(text).is_local:
            raise UsageError(
                f"{flag} {text}: a local path, and the cluster has {num_nodes} nodes; give a URI, or "
                "--shared-filesystem if every node sees this folder"
            )
