"""Nodes that are lost and nodes that join, raylets on this machine: the answers are those of a quiet run."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from llava_batch import pipeline
from llava_batch.job import Job
from tests.raylets import Raylets
from tests.shards import picture, put, put_parquet, tar_bytes

COLUMNS = ["id", "prompt", "answer", "status", "error_code"]
CODE = """
import sys
from llava_batch import Job, run
from llava_batch.workers import shared_state

def elsewhere():
    import ray  # not before the run, which says what Ray is to keep to itself
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    home = NodeAffinitySchedulingStrategy(sys.argv[4], soft=True)
    return ray.remote(shared_state.SharedState).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=home
    ).remote()

if sys.argv[4]:
    shared_state.start = elsewhere
run(Job(input=(sys.argv[1],), output=sys.argv[2], max_new_tokens=int(sys.argv[3]), slots=2,
        shared_filesystem=True))
"""
"""The job as `jobs/caption.py` runs it, with the shared state on a node that may be lost."""


def corpus(folder: Path, num_units: int, in_each: int) -> Path:
    """Tars and Parquet files in turn and some loose files; one image in fifty is broken."""
    for unit in range(num_units):
        numbers = range(unit * in_each, (unit + 1) * in_each)
        images = {f"{n:05}": picture(n) if n % 50 else picture(n)[:40] for n in numbers}
        if unit % 2:
            columns = {"key": list(images), "png": list(images.values())}
            put_parquet(folder / f"{unit:03}.parquet", columns)
        else:
            members = {f"{key}.png": data for key, data in images.items()}
            put(folder / f"{unit:03}.tar", tar_bytes(members))
    for n in range(in_each):
        put(folder / "loose" / f"{n}.png", picture(70_000 + n))
    return folder


def rows(out: Path) -> list[dict]:
    return ds.dataset(out).to_table(columns=COLUMNS).sort_by("id").to_pylist()


def undisturbed(folder: Path, out: Path, max_new_tokens: int) -> list[dict]:
    """With more slots, which is faster, and changes no answer in float32."""
    pipeline.run(Job(input=(str(folder),), output=str(out), max_new_tokens=max_new_tokens,
                     slots=32, quiet=True))  # fmt: skip
    return rows(out)


@contextmanager
def started(
    raylets: Raylets, folder: Path, out: Path, max_new_tokens: int, *, shared: str = ""
) -> Iterator[subprocess.Popen]:
    """The job on the raylets; ended with the block, if it has not ended."""
    arguments = [str(folder), str(out), str(max_new_tokens), shared]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments], env=raylets.environment, text=True,
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()


def wait_for_units(out: Path, process: subprocess.Popen, count: int) -> None:
    deadline = time.monotonic() + 600
    while len([*out.rglob("*.parquet")]) < count and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


@contextmanager
def cluster(*, head_cpus: float) -> Iterator[Raylets]:
    folder = Path(tempfile.mkdtemp(prefix="lbr", dir="/tmp"))
    with Raylets(folder, head_cpus=head_cpus) as raylets:
        yield raylets
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def raylets() -> Iterator[Raylets]:
    with cluster(head_cpus=1) as raylets:
        yield raylets


@pytest.mark.usefixtures("local_ray")
def test_a_node_that_is_lost_costs_no_row_and_one_that_joins_is_used(
    tmp_path: Path, raylets: Raylets
) -> None:
    folder, out = corpus(tmp_path / "in", 8, 40), tmp_path / "out"
    lost, _ = raylets.add(), raylets.add()
    with started(raylets, folder, out, 24) as process:
        wait_for_units(out, process, 1)
        raylets.lose(lost)
        joined = raylets.add()
        said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert rows(out) == undisturbed(folder, tmp_path / "quiet", 24)
    told = json.loads((out / "_run.json").read_bytes())
    assert [change["node"] for change in told["nodes"]["lost"]] == [lost]
    assert [change["node"] for change in told["nodes"]["joined"]] == [joined]
    # Counted, not unknown; how many were in hand there is the moment's: none, if it was just given its next ones.
    assert told["nodes"]["lost"][0]["rows_again"] is not None
    assert "was lost at" in said and "its work goes elsewhere" in said
    assert "retries remaining" not in said and "marked dead" not in said, said


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_all_nodes_lost_at_once_and_others_later_cost_no_row(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in", 8, 40), tmp_path / "out"
    with cluster(head_cpus=0) as raylets:
        lost = {raylets.add(), raylets.add()}
        with started(raylets, folder, out, 24) as process:
            wait_for_units(out, process, 1)
            for node in lost:
                raylets.lose(node)
            time.sleep(10)
            raylets.add()
            raylets.add()
            said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert rows(out) == undisturbed(folder, tmp_path / "quiet", 24)
    told = json.loads((out / "_run.json").read_bytes())
    assert {change["node"] for change in told["nodes"]["lost"]} == lost
    assert "worker_died" not in told["run"]["errors"]
    assert said.count("no node with a CPU is left: the run waits for one, 30 minutes") == 1, said
    assert "Traceback" not in said and "retries remaining" not in said, said


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("seed", [1])
def test_ten_nodes_lost_at_random_moments_cost_no_row(
    tmp_path: Path, raylets: Raylets, seed: int
) -> None:
    folder, out = corpus(tmp_path / "in", 40, 150), tmp_path / "out"
    moments = random.Random(seed)
    nodes = [raylets.add(), raylets.add()]
    lost: list[str] = []
    began = time.monotonic()
    with started(raylets, folder, out, 48, shared=nodes[0]) as process:
        wait_for_units(out, process, 1)
        while process.poll() is None and len(lost) < 12:
            # The shared state's node first; later any, perhaps the one that has just come.
            victim = nodes.pop(0 if not lost else moments.randrange(len(nodes)))
            raylets.lose(victim)
            lost.append(victim)
            time.sleep(moments.uniform(0, 4))
            nodes.append(raylets.add())
            time.sleep(moments.uniform(0, 11))
        under_fire_s = time.monotonic() - began
        said, _ = process.communicate(timeout=1800)
    wall_s = time.monotonic() - began
    assert process.returncode == 0, said
    assert len(lost) >= 10, f"the run was over after {len(lost)} losses"
    answered = rows(out)
    assert answered == undisturbed(folder, tmp_path / "quiet", 48)
    told = json.loads((out / "_run.json").read_bytes())
    assert {change["node"] for change in told["nodes"]["lost"]} == {*lost}
    assert "worker_died" not in told["run"]["errors"]
    figures = {
        "images": told["run"]["images"],
        "lost": len(lost),
        "rows_again": [change["rows_again"] for change in told["nodes"]["lost"]],
        "under_fire_s": round(under_fire_s),
        "wall_s": round(wall_s),
        "undisturbed_s": round(time.monotonic() - began - wall_s),
    }
    print(json.dumps(figures))
    print(said)
