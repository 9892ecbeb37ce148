"""Standstills: a run in which nothing moves for half an hour ends with what was waited for, in a sentence."""

from collections.abc import Iterator

import pyarrow as pa

from llava_batch.driver import cluster
from llava_batch.driver.sizing import Sizing
from llava_batch.errors import RunFailed, counted
from llava_batch.job import Job


def limit_s(job: Job) -> float:
    """Seconds after which nothing is waited for any more: longer than a storage may be away, and than a
    worker may be silent before it counts as hung."""
    return max(cluster.NOTHING_S, 2 * job.storage_patience + job.stall_timeout_s)


def told(batches: Iterator[pa.Table], sizing: Sizing) -> Iterator[pa.Table]:
    """`batches`, as they come.

    Raises:
        RunFailed: Ray Data has waited for so long, or has lost what it cannot make again.
    """
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import ObjectLostError

    answered = False
    try:
        for batch in batches:
            yield batch
            answered = True
    except ExecutionTimeoutError as error:
        raise RunFailed(
            f"nothing moved for half an hour or more: {_waited_for(sizing, answered)}; what was "
            "answered stands, run again to go on"
        ) from error
    except ObjectLostError as error:
        raise RunFailed(
            "rows under way were lost with their node, and could not be made again; what was answered "
            "stands, run again to go on"
        ) from error


def _waited_for(sizing: Sizing, answered: bool) -> str:
    import ray

    have = ray.cluster_resources()
    if sizing.on_gpu:
        there = f"the cluster has {counted(round(have.get('GPU', 0)), 'GPU')} and {sizing.workers} asked for"
        what = "no GPU came free" if not answered else "no GPU came back"
        return f"{what} ({there}; `ray status` shows what holds them)"
    what = (
        "no node came back that has room for a worker" if answered else "no node had room for one"
    )
    return f"{what} ({have.get('CPU', 0):g} CPUs there; `ray status` shows what holds their memory)"
