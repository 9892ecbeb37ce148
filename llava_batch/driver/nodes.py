"""NodeWatch: which nodes of the cluster were lost during a run, and which joined, said in a line each.

Ray does the rest: what a lost node had in hand is done again elsewhere, and a node that joins gets a worker.
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
    """Looks at Ray's list of nodes from a thread until the block ends."""

    def __init__(self, look: Callable[[], list[dict[str, Any]]] | None = None) -> None:
        import ray

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
                    _tell(change, "was lost", "its work goes elsewhere")


def _tell(change: Change, what: str, then: str) -> None:
    at = change.at.astimezone().strftime("%H:%M:%S")
    print(
        f"node {change.address} ({change.node[:8]}) {what} at {at}; {then}",
        file=sys.stderr,
        flush=True,
    )
