"""The Ray cluster that a run uses: reached or started, waited for while it grows, and measured."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llava_batch.driver.before_ray import no_ray_there, reach, starts_here
from llava_batch.driver.sizing import (
    GENERATE_CPUS,
    PREPARE_CPUS,
    READ_CPUS,
    Sizing,
    fit,
    prepare_workers_beside,
    total,
)
from llava_batch.errors import RunFailed
from llava_batch.job import Job

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

_OF_OUR_OWN = {
    "RAY_worker_niceness": "0",  # 15 by default: what Ray's own processes do would always come first
    # Idle workers that are kept wake a hundred times a second; what comes between two units is shorter.
    "RAY_num_workers_soft_limit": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
    "RAY_event_stats": "0",  # of Ray's own event loops
    "RAY_task_events_report_interval_ms": "0",  # to a dashboard, which such a Ray has not
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # of the node's own figures, to the same
    # The log monitor looks for no logs to send: the driver takes none.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": str(10**6),
}
"""How a Ray that is the run's own is set, unless somebody has set it otherwise: what wakes beside the engine takes
its cores from it (benchmarks/LOG.md). Its processes have these while they start; no other Ray of the driver's does."""


def under_job_submit() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected(*, quiet: bool = False) -> Iterator[bool]:
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
    own = here and starts_here()  # `ray.init` joins one that was started on this machine
    reach(quiet=quiet)
    try:
        with _silent_stderr(), _in_environment(_OF_OUR_OWN if own else {}):
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise no_ray_there(error) from error
    try:
        yield own
    finally:
        ray.shutdown()


@contextmanager
def _in_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Those that nobody has set yet are set within the block."""
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


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
    prepare_workers_beside(
        job, most["CPU"], int(most["GPU"]), workers
    )  # refuses what growth cannot help
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
