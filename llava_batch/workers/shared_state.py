"""SharedState: one small actor where the workers leave word: attempts at rows, stage counters, thumbnails.

Attempts make a row that kills its worker findable: a batch is written down before it is worked on
and struck off after, so what a retry finds still standing was in hand when the worker died. With each
stands the node that it was made on: one on a node that is dead says nothing of the row. Memory
is bounded by the rows in flight, the number of workers and of lost nodes, and `NUM_THUMBNAILS`. Takes no
CPU share. What is lost with it is figures: every row comes to its end without.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

NUM_THUMBNAILS = 400
"""Images of which the report shows a thumbnail: those with the smallest hash of their name."""

WAIT_S = 120.0
"""How long a worker waits for it: where its node was lost, it is back by then."""

Name = tuple[str, str, int]
"""(stage, unit, ordinal): one row at one stage."""


class SharedState:
    """The actor's class; `start` makes the actor."""

    def __init__(self, dead_nodes: Callable[[], set[str]] | None = None) -> None:
        self._dead_nodes = dead_nodes or _dead_nodes
        self._attempts: dict[Name, list[str]] = {}
        """The node of each attempt that stands."""
        self._homes: dict[str, str] = {}
        self._lost: Counter[tuple[str, str]] = Counter()
        self._stages: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        self._thumbnails: list[tuple[int, str, bytes]] = []

    def begin_if_clean(self, names: list[Name], node: str) -> list[int]:
        """How often each row was in hand when its worker died; if none was, all are in hand now, on
        `node`."""
        self._forgive(names)
        counts = [len(self._attempts.get(name, ())) for name in names]
        if not any(counts):
            self.begin(names, node)
        return counts

    def begin(self, names: list[Name], node: str) -> None:
        """These rows are in hand on `node`."""
        for name in names:
            self._attempts.setdefault(name, []).append(node)

    def finish(self, names: list[Name]) -> None:
        """These rows are done."""
        for name in names:
            self._attempts.pop(name, None)

    def _forgive(self, names: list[Name]) -> None:
        """Strike off the attempts at these rows that ended with their node."""
        known = [name for name in names if name in self._attempts]
        if not known:
            return
        dead = self._dead_nodes()
        for name in known:
            nodes = self._attempts[name]
            self._lost.update((node, name[0]) for node in nodes if node in dead)
            self._attempts[name] = [node for node in nodes if node not in dead]
            if not self._attempts[name]:
                del self._attempts[name]

    def lost(self) -> dict[str, int]:
        """Rows that were in hand at `generate` on each node that was lost, and have been taken up again."""
        return {node: count for (node, stage), count in self._lost.items() if stage == "generate"}

    def settle(self, worker: str, node: str) -> int:
        """A worker is at home on `node`; returns how many are there now."""
        self._homes[worker] = node
        return sum(home == node for home in self._homes.values())

    def report(self, stage: str, worker: str, counters: dict[str, float]) -> None:
        """A worker's counters so far; they replace what it said before."""
        self._stages[stage][worker] = counters

    def stages(self) -> dict[str, dict[str, float]]:
        """Each stage's counters summed over its workers (of a `peak_…` the largest, of a `first_…` the
        smallest), and how many workers there were."""
        summed: dict[str, dict[str, float]] = {}
        for stage, workers in self._stages.items():
            total: dict[str, float] = defaultdict(float, workers=len(workers))
            for counters in workers.values():
                for name, value in counters.items():
                    if name.startswith("peak_"):
                        total[name] = max(total[name], value)
                    elif name.startswith("first_"):
                        total[name] = min(total.get(name, value), value)
                    else:
                        total[name] += value
            summed[stage] = dict(total)
        return summed

    def began_anew(self) -> bool:
        """Whether this is not the first: what the one before knew is lost."""
        import ray

        anew: bool = ray.get_runtime_context().was_current_actor_reconstructed
        return anew

    def offer(self, thumbnails: list[tuple[int, str, bytes]]) -> int | None:
        """Keep the thumbnails of the smallest hashes; returns the hash that a next one must be under."""
        known = {name for _, name, _ in self._thumbnails}
        for rank, name, jpeg in thumbnails:
            if name not in known:
                heapq.heappush(self._thumbnails, (-rank, name, jpeg))
        while len(self._thumbnails) > NUM_THUMBNAILS:
            heapq.heappop(self._thumbnails)
        return -self._thumbnails[0][0] if len(self._thumbnails) == NUM_THUMBNAILS else None

    def thumbnails(self) -> list[tuple[int, str, bytes]]:
        """(hash, name, JPEG) of the images kept, smallest hash first."""
        return sorted((-rank, name, jpeg) for rank, name, jpeg in self._thumbnails)


def start() -> Any:
    """A handle to a new one; it lives as long as the driver, and on its node: that one is not lost
    without the run."""
    import ray

    # A label waits for its node; the strategy for it (NodeAffinity) fails, or goes elsewhere, where the
    # node is so new that its resources are not known yet.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    shared = ray.remote(SharedState)
    lasting = shared.options(num_cpus=0, max_restarts=-1, max_task_retries=-1, label_selector=here)
    return lasting.remote()


def _dead_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
