"""NodeWatch: which nodes of the cluster were lost during a run, and which joined, said in a line each.

Ray does the rest: what a lost node had in hand is done again elsewhere, and a node that joins gets a worker.
Where no node is left to work on, the run waits for one, and says so.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

_LOOK_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """A node that was lost, or that joined."""

    node: str
    """Ray's id of it."""
    address: str
    at: datetime


class NodeWatch:
    """Looks at Ray's list of nodes from a thread until the block ends. A node is one to work on where it has
    `needs`, by Ray's name of the resource; without any, the run waits for at most `wait_s`."""

    def __init__(
        self,
        look: Callable[[], list[dict[str, Any]]] | None = None,
        *,
        needs: str = "CPU",
        wait_s: float = 0.0,
    ) -> None:
        import ray

        self._needs = needs
        self._wait_s = wait_s
        self.lost: list[Change] = []
        self.joined: list[Change] = []
        self._look = look or ray.nodes
        self._here = {node["NodeID"] for node in self._look() if node["Alive"]}
        self._gone = {node["NodeID"] for node in self._look()} - self._here
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self.look()

    def look(self) -> None:
        """Look now; where the head does not answer nothing is known."""
        from ray.exceptions import RayError

        with suppress(RayError), self._lock:
            self.note(self._look())

    def note(self, nodes: list[dict[str, Any]]) -> None:
        """Say what has changed since the last look."""
        left = any(n["Alive"] and n["Resources"].get(self._needs, 0) > 0 for n in nodes)
        num_lost = len(self.lost)
        for node in nodes:
            ident = node["NodeID"]
            change = Change(node=ident, address=node["NodeManagerAddress"], at=datetime.now(UTC))
            if node["Alive"] and ident not in self._here:
                self._here.add(ident)
                self.joined.append(change)
                _tell(change, "joined", "it gets work")
            elif not node["Alive"] and ident not in self._gone:
                self._gone.add(ident)
                if ident in self._here:
                    self.lost.append(change)
                    _tell(change, "was lost", f"its work {'goes elsewhere' if left else 'waits'}")
        if len(self.lost) > num_lost and not left:
            _say(f"no node with a {self._needs} is left: the run waits for one, "
                 f"{self._wait_s / 60:g} minutes at the most")  # fmt: skip


def _tell(change: Change, what: str, then: str) -> None:
    at = change.at.astimezone().strftime("%H:%M:%S")
    _say(f"node {change.address} ({change.node[:8]}) {what} at {at}; {then}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
