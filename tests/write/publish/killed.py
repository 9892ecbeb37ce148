"""A publication that is killed at its N-th step, as a process of its own: `killed.py OUT TABLE STEP`.

A step is a call by which something outside the process may change: files of the folder and of the table,
the catalog, the rows that the table's library asks for. Without being killed it prints how many there were.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import llava_batch.write.publish.note as note
from llava_batch.write.publish.publish import publish
from llava_batch.write.publish.target import lake_table
from tests.outputs import ledger_of


class Steps:
    """Counts steps, and ends the process before the one that it is to die at."""

    def __init__(self, die_at: int) -> None:
        self.taken = 0
        self._die_at = die_at

    def take(self) -> None:
        self.taken += 1
        if self.taken == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        """Make a step of the beginning of a call, and of its end."""
        call: Callable[..., Any] = getattr(owner, name)

        def stepped(*args: Any, **named: Any) -> Any:
            self.take()
            result = call(*args, **named)
            self.take()
            return result

        setattr(owner, name, stepped)


def main(out: str, to: str, die_at: int) -> None:
    from pathlib import Path

    steps = Steps(die_at)
    steps.around(note, "write_whole")
    if to.startswith("delta:"):
        import deltalake

        steps.around(deltalake, "write_deltalake")
    else:
        from pyiceberg.catalog.sql import SqlCatalog
        from pyiceberg.io.pyarrow import PyArrowFileIO
        from pyiceberg.table import Transaction

        steps.around(SqlCatalog, "commit_table")
        steps.around(SqlCatalog, "create_namespace_if_not_exists")
        steps.around(Transaction, "commit_transaction")
        steps.around(
            PyArrowFileIO, "new_output"
        )  # each data file, manifest, list and metadata file
    ledger = ledger_of(Path(out))
    publish(ledger, lake_table(to), said={}, check=steps.take)
    print(steps.taken)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
