"""CrashGuard: how a worker handles rows that may kill it, with the shared state as its memory.

A batch whose rows are all new is worked on whole. One that was in hand when a worker died is worked
on row by row, each written down by itself; a row in hand at `max_tries` deaths is given up. The death
of a batch says nothing of one row in it, so every row is tried at least once by itself.
"""

from dataclasses import dataclass
from typing import Any

import ray

from llava_batch.errors import RowError
from llava_batch.workers.shared_state import Name


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
        counts = ray.get(self.shared.begin_if_clean.remote(self.names(rows)))
        return not any(counts)

    def may_try(self, row: dict[str, Any]) -> bool:
        """Whether to try `row` by itself once more; it is then written down as in hand."""
        names = self.names([row])
        count = max(ray.get(self.shared.begin_if_clean.remote(names)), default=0)
        if count >= self._most:
            return False
        if count:
            ray.get(self.shared.begin.remote(names))
        return True

    def done(self, rows: list[dict[str, Any]]) -> None:
        """`rows` went well, or were given up."""
        self.shared.finish.remote(self.names(rows))

    def verdict(self) -> dict[str, str]:
        """The error of a row that is given up."""
        what = f"the worker died {self._most} times while it had this row ({self.stage})"
        return {"error_code": RowError.WORKER_DIED.value, "error_message": what}
