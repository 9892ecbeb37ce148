"""The Ray cluster that a run uses: reached or started, measured, and found large enough.

One worker's share of the CPUs is a fraction, so that readers, preparers and generators all fit on
the smallest machine; what computes is limited by threads, not by these shares.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llava_batch.driver.before_ray import no_ray_there, reach
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.read.lake.recognise import CATALOG
from llava_batch.storage import locate

READ_CPUS = 0.25
PREPARE_CPUS = 0.25
GENERATE_CPUS = 0.5
READERS_PER_WORKER = 4
"""Units that are read at once: twice the readers that keep a worker busy. The fastest takes some 50 images
a second (LLaVA-1.5-7B on an H100), and the slowest input, loose files in an object store, gives some 25 a
reader (two requests of 20 ms an image); a tar or Parquet file gives hundreds."""
GROWTH_LOOK_S = 2.0
"""Between two looks at a cluster that is to grow; it is said every GROWTH_TOLD_S."""
GROWTH_TOLD_S = 30.0

_OWN_DOING = "killed by `ray.kill`"
"""What Ray says of actors that a run lets go when it ends or is stopped, as if it were a failure; its word
on any other death is shown."""


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How many actors of each kind, and what each takes."""

    workers: int
    prepare_workers: int
    gpus_per_worker: float
    threads_per_worker: int
    read_workers: int = READERS_PER_WORKER
    """The most units that are read at once."""

    @property
    def on_gpu(self) -> bool:
        return self.gpus_per_worker > 0


def under_job_submit() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected(*, log_to_driver: bool = False, quiet: bool = False) -> Iterator[None]:
    """Ray, as found in the environment or else a local one, for the length of the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the rest is in Ray's own log files
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _OWN_DOING)
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    here = "RAY_ADDRESS" not in os.environ and not under_job_submit()
    local: dict[str, Any] = {"include_dashboard": False} if here else {}
    reach(quiet=quiet)
    try:
        with _silent_stderr():
            ray.init(log_to_driver=log_to_driver, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise no_ray_there(error) from error
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
    """Actors for the connected cluster; one that grows by itself is waited for, saying so.

    Raises:
        UsageError: the cluster is too small for the workers asked for, and cannot grow so far; the
            message says for how many it is large enough.
    """
    import ray

    limit = _growth_limit()
    if limit is not None:
        _wait_for_growth(job, limit)
    return fit(job, ray.cluster_resources())


def fit(job: Job, have: Mapping[str, float]) -> Sizing:
    """Actors for a cluster that has these resources, or UsageError where they do not suffice."""
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
        read_workers=job.read_workers or READERS_PER_WORKER * workers,
    )


def most_workers(cpus: int) -> int:
    """Workers that one machine of so many CPUs and no card has room for, a reader and a preparer beside."""
    return int((cpus - READ_CPUS - PREPARE_CPUS) / GENERATE_CPUS)


def _growth_limit() -> dict[str, float] | None:
    """What an autoscaling cluster may grow to, by resource; None where the cluster stays as it is."""
    import ray

    # Not a public function, but the one by which Ray Data and Ray Train find out.
    limit: dict[str, float] | None = (
        ray._private.state.state.get_max_resources_from_cluster_config()
    )
    return limit


def _wait_for_growth(job: Job, limit: Mapping[str, float]) -> None:
    """Ask the autoscaler for what the job needs, and wait until it is there."""
    import ray
    from ray.autoscaler.sdk import request_resources

    now = ray.cluster_resources()
    most = {name: max(limit.get(name, 0), now.get(name, 0)) for name in ("CPU", "GPU")}
    workers = job.workers or 1
    fit(job.but(workers=workers), most)  # refuses what no growth can help
    gpus = min(workers, int(most["GPU"]))
    cpus = _cpus_for(job, gpus)
    told = -math.inf
    while now.get("GPU", 0) < gpus or now.get("CPU", 0.0) < cpus:
        if time.monotonic() - told >= GROWTH_TOLD_S:
            told = time.monotonic()
            print(_waiting_line(now, cpus, gpus), file=sys.stderr, flush=True)
            request_resources(bundles=[{"CPU": 0.25}] * math.ceil(4 * cpus) + [{"GPU": 1}] * gpus)
        time.sleep(GROWTH_LOOK_S)
        now = ray.cluster_resources()


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


def refuse_vanishing_output(job: Job) -> None:
    """Refuse a relative output under `ray job submit`, which starts a job in a temporary folder."""
    places = [("--output ", job.output)]
    places += [("--publish delta:", p[6:]) for p in job.publish if p.startswith("delta:")]
    for flag, text in places:
        if under_job_submit() and "://" not in text and not os.path.isabs(text):
            raise UsageError(
                f"{flag}{text}: under `ray job submit` a relative path lies in a temporary "
                "folder that is deleted with the job; give an absolute path or a URI"
            )


def refuse_local_paths(job: Job) -> None:
    """Refuse paths that only one node of several could see.

    Raises:
        UsageError: such an input or output, unless the job says that the nodes share it.
    """
    import ray

    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if num_nodes < 2 or job.shared_filesystem:
        return
    flags = [("--output", job.output), *(("--input", i) for i in job.input)]
    for flag, text in [*flags, *([("--image-root", job.image_root)] if job.image_root else [])]:
        if not text.startswith(CATALOG) and locate(text).is_local:
            raise UsageError(
                f"{flag} {text}: a local path, and the cluster has {num_nodes} nodes; give a URI, or "
                "--shared-filesystem if every node sees this folder"
            )
