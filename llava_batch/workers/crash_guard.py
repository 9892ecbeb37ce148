"""CrashGuard: how a worker handles rows that may kill it, with the shared state as its memory.

A batch whose rows are all new is worked on whole. One that was in hand when a worker died is worked
on row by row, each written down by itself; a row in hand at `max_tries` deaths is given up. The death
of a batch says nothing of one row in it, so every row is tried at least once by itself. A worker that died
with its node died of nothing in its hands.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from llava_batch.errors import RowError
from llava_batch.workers import place
from llava_batch.workers.shared_state import WAIT_S, Name


@dataclass(frozen=True)
class CrashGuard:
    """One stage's view of the attempts that are written down."""

    shared: Any
    stage: str
    max_tries: int

    @property
    def _most(self) -> int:
        return max(self.max_tries, 2)

    def names(self, rows: list[dict[str, Any]]) -> list[Name]:
        """What `rows` are called there; end rows have none, they cannot do harm."""
        return [(self.stage, r["unit"], r["ordinal"]) for r in rows if not r["end"]]

    def is_clean(self, rows: list[dict[str, Any]]) -> bool:
        """Whether no worker died on any of `rows`; they are then written down as in hand."""
        return not any(self._begin_if_clean(self.names(rows)))

    def _begin_if_clean(self, names: list[Name]) -> list[int]:
        """Where the shared state does not answer in time, no row is known of, and none is held up: it
        keeps rows from harm, not from being answered."""
        asked = self.shared.begin_if_clean.remote(names, place.node_id())
        try:
            counts: list[int] = ray.get(asked, timeout=WAIT_S)
        except GetTimeoutError:
            return []
        return counts

    def may_try(self, row: dict[str, Any]) -> bool:
        """Whether to try `row` by itself once more; it is then written down as in hand."""
        names = self.names([row])
        count = max(self._begin_if_clean(names), default=0)
        if count >= self._most:
            return False
        if count:
            ray.wait([self.shared.begin.remote(names, place.node_id())], timeout=WAIT_S)
        return True

    def done(self, rows: list[dict[str, Any]]) -> None:
        """`rows` went well, or were given up."""
        self.shared.finish.remote(self.names(rows))

    def verdict(self) -> dict[str, str]:
        """The error of a row that is given up."""
        what = f"the worker died {self._most} times while it had this row ({self.stage})"
        return {"error_code": RowError.WORKER_DIED.value, "error_message": what}
