"""Where a worker finds itself: its node, and how many of the node's cores are its own."""

import os
from typing import Any

import ray
from ray.exceptions import RayError

from llava_batch.workers.shared_state import WAIT_S


def node_id() -> str:
    """Ray's id of the node that this process runs on."""
    here: str = ray.get_runtime_context().get_node_id()
    return here


def worker_id() -> str:
    """Ray's id of this actor, the same after a restart elsewhere."""
    actor: str = ray.get_runtime_context().get_actor_id()
    return actor


def num_threads(shared: Any, workers_per_node: int) -> int:
    """This worker's share of its node's cores: of a GPU node the same for each card, else for each worker
    that is there, and at least `workers_per_node` of them."""
    node = next(n for n in ray.nodes() if n["NodeID"] == node_id())
    has = node["Resources"]
    cores = min(int(has.get("CPU", 1)), os.cpu_count() or 1)
    return max(1, cores // (int(has.get("GPU", 0)) or _beside(shared, workers_per_node)))


def _beside(shared: Any, at_least: int) -> int:
    """Workers on this node, this one among them."""
    try:
        there: int = ray.get(shared.settle.remote(worker_id(), node_id()), timeout=WAIT_S)
    except RayError:  # nobody to ask: the node is shared as was planned
        return at_least
    return max(at_least, there)
