"""Several raylets on one machine, in a process of their own: nodes that join and that are lost at will.

`python -m tests.raylets` starts the head, prints the cluster's address, and takes orders on its stdin, a
line each: `add CPUS` prints the new node's id, `lose ID` ends a node as a power cut does. The cluster's end
is that of the input.
"""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

MEMORY = 2**30
"""Of each node by Ray's count: enough for one worker and not for two."""
STORE = 100 * 2**20
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}
"""A node whose port is closed is called dead within two seconds, not twenty: or a short run might end before."""


class Raylets:
    """The cluster, seen from a test; Ray's files lie in `folder`, whose name is short for its sockets."""

    def __init__(self, folder: Path, *, head_cpus: float = 1) -> None:
        environment = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
        # Or a Ray that another process starts would take this cluster for its own.
        self.environment = environment | {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.raylets", str(head_cpus)],
            env=self.environment, cwd=Path(__file__).parents[1], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self._answer()
        self.environment["RAY_ADDRESS"] = self.address

    def __enter__(self) -> "Raylets":
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        finally:
            self._process.kill()
            self._process.stdout.close()

    def add(self, cpus: float = 1) -> str:
        """A node more; returns Ray's id of it."""
        return self._order(f"add {cpus}")

    def lose(self, node: str) -> None:
        """All the node's processes end at once."""
        assert self._order(f"lose {node}") == "lost"

    def _order(self, line: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("= "):
                return line[2:].strip()
        raise AssertionError("the raylets' process has ended")


def main(head_cpus: float) -> None:
    from ray.cluster_utils import Cluster

    size = {"memory": MEMORY, "object_store_memory": STORE}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": head_cpus,
            "include_dashboard": False,
            "_system_config": HEALTH,
            **size,
        },
    )
    nodes, numbers = {}, count()
    print("=", cluster.address, flush=True)
    for line in sys.stdin:
        order, what = line.split()
        if order == "add":
            # An address of its own on the loopback: or the driver might be of this node, not of the head.
            address = f"127.0.0.{2 + next(numbers)}"
            node = cluster.add_node(num_cpus=float(what), node_ip_address=address, **size)
            nodes[node.node_id] = node
            print("=", node.node_id, flush=True)
        else:
            nodes.pop(what).kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            print("= lost", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(float(sys.argv[1]))
