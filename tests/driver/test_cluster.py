"""Sizing: what a cluster has room for, what is refused, and what is waited for; a cluster of the run's own."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from llava_batch.driver import cluster
from llava_batch.driver.sizing import fit
from llava_batch.errors import RunFailed, UsageError
from llava_batch.job import Job


def test_a_cluster_of_fixed_size_is_measured_at_once(monkeypatch):
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(cluster, "_growth_limit", lambda: None)
    sizing = cluster.size_up(Job())
    assert (sizing.workers, sizing.prepare_workers, sizing.threads_per_worker) == (1, 1, 2)
    with pytest.raises(
        UsageError, match=r"--workers 8: needs 4.5 CPUs, the cluster has 2; give at"
    ):
        cluster.size_up(Job(workers=8))


@pytest.fixture
def growing(monkeypatch):
    """A cluster that begins with one CPU and has what was asked for at the third look."""
    asked: list[list[dict]] = []
    looks = [0]

    def resources() -> list[dict[str, float]]:
        looks[0] += 1
        if looks[0] < 6 or not asked:
            return [{"CPU": 0.5}]
        bundles = asked[-1]
        totals = {name: sum(b.get(name, 0) for b in bundles) for name in ("CPU", "GPU")}
        return [{name: amount for name, amount in totals.items() if amount}]

    monkeypatch.setattr(cluster, "nodes", resources)
    monkeypatch.setattr(cluster, "_largest_to_come", dict)
    monkeypatch.setattr(cluster, "GROWTH_LOOK_S", 0.01)
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles)
    )
    return asked


def test_an_autoscaling_cluster_is_asked_to_grow_and_waited_for_saying_so(
    growing, monkeypatch, capsys
):
    monkeypatch.setattr(cluster, "_growth_limit", lambda: {"CPU": 16.0})
    sizing = cluster.size_up(Job(workers=4, prepare_workers=2))
    assert (sizing.workers, sizing.prepare_workers) == (4, 2)
    said = capsys.readouterr().err
    assert said == "waiting for the cluster to grow: it has 0.5 CPUs, the job needs 2.75 CPUs\n"


def test_a_gpu_that_the_cluster_can_have_is_waited_for(growing, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "_growth_limit", lambda: {"CPU": 16.0, "GPU": 4.0})
    sizing = cluster.size_up(Job())
    assert sizing.on_gpu and sizing.workers == 1
    assert "0 GPUs, the job needs 0.75 CPUs and 1 GPUs" in capsys.readouterr().err


def test_more_cards_than_cpus_in_reach_do_not_keep_one_worker_from_starting(growing, monkeypatch):
    monkeypatch.setattr(cluster, "_growth_limit", lambda: {"CPU": 2.0, "GPU": 64.0})
    assert cluster.size_up(Job()).workers == 1


def test_what_no_growth_can_help_is_refused_without_waiting(growing, monkeypatch):
    monkeypatch.setattr(cluster, "_growth_limit", lambda: {"CPU": 4.0})
    with pytest.raises(UsageError, match=r"--workers 50: .* the cluster has 4; give at most 7"):
        cluster.size_up(Job(workers=50))
    assert growing == []


def test_a_cluster_that_does_not_grow_is_not_waited_for_for_ever(growing, monkeypatch):
    monkeypatch.setattr(cluster, "_growth_limit", lambda: {"CPU": 16.0, "GPU": 4.0})
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": 4.0}])
    monkeypatch.setattr(cluster, "NOTHING_S", 0.05)
    with pytest.raises(
        RunFailed, match=r"has 4 CPUs and 0 GPUs, .* did not grow for .* minutes; see"
    ):
        cluster.size_up(Job())


GIB = 2**30


def node(cpus: float, gib: float = 64, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, "memory": gib * GIB, "GPU": gpus}


def test_each_cpu_node_gets_a_worker_and_each_that_joins_another() -> None:
    # One worker had all the cluster's threads, on whichever node it was.
    head, *others = node(0, 8), node(16), node(16, 66)
    sizing = fit(Job(), [head, *others])
    assert (sizing.workers, sizing.threads_per_worker, sizing.max_workers) == (2, 16, None)
    assert 33 * GIB < sizing.memory_per_worker <= 64 * GIB, "a second one fits on neither"


def test_nodes_of_different_kinds_get_one_each_and_no_more() -> None:
    sizing = fit(Job(), [node(4, 16), node(64, 256)])
    assert (sizing.workers, sizing.max_workers, sizing.threads_per_worker) == (2, 2, 64)
    assert sizing.memory_per_worker <= 16 * GIB


def test_workers_asked_for_share_the_nodes_and_stay_as_many() -> None:
    sizing = fit(Job(workers=4), [node(16), node(16)])
    assert (sizing.workers, sizing.max_workers, sizing.workers_per_node) == (4, 4, 2)
    assert 2 * sizing.memory_per_worker <= 64 * GIB < 3 * sizing.memory_per_worker


def test_a_small_head_is_no_place_for_a_worker_where_larger_nodes_may_come() -> None:
    sizing = fit(Job(), [node(2, 4)], largest=node(64, 256))
    assert sizing.memory_per_worker > 128 * GIB
    assert (sizing.workers, sizing.max_workers) == (1, None)


def test_a_ray_that_the_run_started_asks_for_no_memory() -> None:
    sizing = fit(Job(), [node(2)], alone=True)
    assert (sizing.memory_per_worker, sizing.max_workers) == (0, 1)


def test_cards_that_join_get_workers_unless_their_number_is_given() -> None:
    nodes = [node(4), node(32, gpus=4)]
    sizing = fit(Job(), nodes)
    assert (sizing.workers, sizing.max_workers, sizing.memory_per_worker) == (4, None, 0)
    assert sizing.threads_per_worker == 8
    assert fit(Job(workers=2), nodes).max_workers == 2


_OWN = """
import json, os, subprocess, sys, time
from llava_batch.driver import cluster

def idle():
    lines = subprocess.check_output(["ps", "-eo", "pid=,ppid=,comm="], text=True).splitlines()
    every = [line.split(maxsplit=2) for line in lines]
    raylets = {pid for pid, parent, name in every if (int(parent), name) == (os.getpid(), "raylet")}
    assert raylets
    return sum(parent in raylets and name == "ray::IDLE" for _, parent, name in every)

before = dict(os.environ)
with cluster.connected() as own:
    import ray
    niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())
    until = time.monotonic() + 60
    while idle() != int(sys.argv[1]) and time.monotonic() < until:
        time.sleep(0.2)
    left = os.environ.keys() & cluster._OF_OUR_OWN.keys()
    print(json.dumps([own, niceness - os.nice(0), idle(), sorted(left - before.keys())]))
"""


@pytest.mark.parametrize(
    ("set_before", "niceness", "idle"),
    [({}, 0, 0), ({"RAY_worker_niceness": "3", "RAY_num_workers_soft_limit": "1"}, 3, 1)],
    ids=["as we set it", "as the user did"],
)
def test_in_a_ray_of_the_runs_own_nothing_comes_before_the_engine_and_no_worker_idles(
    set_before, niceness, idle
):
    names = cluster._OF_OUR_OWN.keys() | {"RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"}
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= {"RAY_idle_worker_killing_time_threshold_ms": "500"} | set_before
    with tempfile.TemporaryDirectory(prefix="lbown", dir="/tmp") as folder:  # short: sockets
        ran = subprocess.run(
            [sys.executable, "-c", _OWN, str(idle)],
            capture_output=True, text=True, check=True, timeout=180,
            env=env | {"RAY_TMPDIR": folder},
        )  # fmt: skip
    # The last: of what was set for the processes of that Ray, nothing is left to the driver's next one.
    assert json.loads(ran.stdout.splitlines()[-1]) == [True, niceness, idle, []]
