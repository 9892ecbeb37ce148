"""Sizing: what a cluster has room for, what is refused, and what is waited for."""

import pytest
import ray

from llava_batch.driver import cluster
from llava_batch.errors import UsageError
from llava_batch.job import Job


def test_a_cluster_of_fixed_size_is_measured_at_once(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
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

    def resources() -> dict[str, float]:
        looks[0] += 1
        if looks[0] < 6 or not asked:
            return {"CPU": 0.5}
        bundles = asked[-1]
        totals = {name: sum(b.get(name, 0) for b in bundles) for name in ("CPU", "GPU")}
        return {name: amount for name, amount in totals.items() if amount}

    monkeypatch.setattr(ray, "cluster_resources", resources)
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
