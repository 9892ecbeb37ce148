"""A worker's threads are its share of its own node's cores, whatever the driver's has."""

import os

import pytest
import ray

from llava_batch.workers import place
from llava_batch.workers.shared_state import SharedState
from tests.without_ray import LocalState


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch):
    """Puts the test on a node, as some worker."""
    nodes = [
        {"NodeID": "small", "Resources": {"CPU": 4.0}},
        {"NodeID": "large", "Resources": {"CPU": 64.0}},
        {"NodeID": "cards", "Resources": {"CPU": 32.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(os, "cpu_count", lambda: 48)

    def put(node: str, worker: str = "w") -> None:
        monkeypatch.setattr(place, "node_id", lambda: node)
        monkeypatch.setattr(place, "worker_id", lambda: worker)

    return put


def test_a_worker_takes_the_cores_of_its_own_node(at) -> None:
    shared = LocalState()
    at("small", "a")
    assert place.num_threads(shared, 1) == 4
    at("large", "b")
    assert place.num_threads(shared, 1) == 48, (
        "not more than the machine has, whatever Ray was told"
    )


def test_workers_share_a_node_as_planned_or_as_it_came(at) -> None:
    shared = LocalState()
    at("large", "a")
    assert place.num_threads(shared, 2) == 24
    at("large", "b")
    assert place.num_threads(shared, 1) == 24
    at("large", "a")
    assert place.num_threads(shared, 1) == 24, "the same worker again is not a third"


def test_a_cards_worker_has_its_cards_share(at) -> None:
    at("cards")
    assert place.num_threads(LocalState(), 1) == 4


def test_a_worker_that_moved_is_at_home_on_its_new_node_alone() -> None:
    state = SharedState()
    assert state.settle("a", "one") == 1
    assert state.settle("a", "two") == 1
    assert state.settle("b", "one") == 1
