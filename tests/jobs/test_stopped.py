"""A run in a terminal, stopped by one Ctrl-C: the signal goes to every process of its group."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from llava_batch.demo.shards import write_shards

MANY = 600
"""Scenes that are still being answered when the first unit is whole."""
SCRIPT = Path(__file__).parents[2] / "jobs" / "caption.py"


def stopped_after_the_first_table(shards: list[Path], out: Path) -> tuple[int, str]:
    """Exit status of a run and all that it printed, after a SIGINT to its group once a table stands."""
    names = [str(path) for path in shards]
    told = out.parent / "told.txt"
    others = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
    with told.open("w") as log:
        run = subprocess.Popen(
            [sys.executable, str(SCRIPT), "--input", *names, "--output", str(out)],
            stdout=log, stderr=log, start_new_session=True, env=others,
        )  # fmt: skip
        try:
            while run.poll() is None and not list(out.glob("*.parquet")):
                time.sleep(0.1)
            os.killpg(run.pid, signal.SIGINT)
            return run.wait(60), told.read_text()
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()


def test_one_ctrl_c_says_our_line_alone_and_leaves_whole_tables(tmp_path: Path) -> None:
    # Ray told, in colours, of each task that "failed" since the run had let its actors go.
    few = write_shards(tmp_path / "few", count=4, seed=1)[:1]
    few = [Path(shutil.move(few[0], tmp_path / "few" / "a.tar"))]
    many = write_shards(tmp_path / "many", count=MANY, seed=2)[:1]
    status, said = stopped_after_the_first_table([*few, *many], tmp_path / "out")
    assert status == 130, said
    lines = said.splitlines()
    assert "raylet" not in said and "\x1b" not in said, said
    assert lines[-1].endswith("stopped; finished units are committed, run it again to resume")
    tables = sorted((tmp_path / "out").glob("*.parquet"))
    assert [path.stem for path in tables] == ["a"]
    assert pq.read_table(tables[0]).num_rows == 4
