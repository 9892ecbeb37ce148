"""SampleSource: a sample's runs of rows as a Ray Data source, read by as many tasks as a job has."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from llava_batch.errors import LlavaBatchError
from llava_batch.read.kinds import read_rows
from llava_batch.read.reading import Reading
from llava_batch.read.sample import RUN_ROWS, Run
from llava_batch.read.source import end_row, table_of_rows
from llava_batch.tables import packed

_AT_ONCE = 16
"""Runs read while others wait for their storage."""
_BLOCK_ROWS = 32
"""As a job's blocks are."""


class SampleSource(Datasource):  # type: ignore[misc]
    """A Ray Data source of runs, read by as many tasks as a job has, each in their order: where a pilot ends
    early, it has what was drawn first. The rows have the ordinal `number * RUN_ROWS`
    and on, by the run's number; after each run comes an end row whose unit is that number, as text."""

    def __init__(self, runs: Sequence[Run], reading: Reading, num_tasks: int = 1) -> None:
        super().__init__()
        self._runs, self._reading = [*enumerate(runs)], reading
        self.num_tasks = max(1, min(num_tasks, len(runs)))

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        unknown = BlockMetadata(
            num_rows=None, size_bytes=None, input_files=None, exec_stats=None, task_exec_stats=None
        )
        shares = (self._runs[i :: self.num_tasks] for i in range(self.num_tasks))
        return [ReadTask(partial(_packed, share, self._reading), unknown) for share in shares]


def _packed(runs: Sequence[tuple[int, Run]], reading: Reading) -> Iterator[pa.Table]:
    return map(packed, read_runs(runs, reading))


def read_runs(runs: Sequence[tuple[int, Run]], reading: Reading) -> Iterator[pa.Table]:
    """The runs' rows, a block of some of them at a time; a run that its storage does not give ends in
    error."""
    held: list[pa.Table] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, len(runs), _AT_ONCE):
            several = runs[first : first + _AT_ONCE]
            for tables in pool.map(
                lambda numbered: _read(numbered[0], numbered[1], reading), several
            ):
                held += tables
                if sum(table.num_rows for table in held) >= _BLOCK_ROWS:
                    yield pa.concat_tables(held)
                    held = []
    if held:
        yield pa.concat_tables(held)


def _read(number: int, run: Run, reading: Reading) -> list[pa.Table]:
    """One run's rows, and its end row."""
    tables, problem, count = [], None, 0
    try:
        rows = read_rows(run.unit, reading)
        if run.unit.retry is not None:
            rows = (row for row in rows if row.name in (run.unit.retry or ()))
        some = dict(enumerate(islice(rows, run.skip, run.skip + run.count), number * RUN_ROWS))
        count = len(some)
        tables = [table_of_rows(run.unit, some, reading)] if some else []
    except (OSError, MemoryError, LlavaBatchError) as error:
        problem = f"{type(error).__name__}: {error}"
    return [*tables, end_row(replace(run.unit, name=str(number)), count, reading, problem)]
