"""Attempts that are written down: what died with its row counts, what died with its node does not."""

import pytest

from llava_batch.workers import place
from llava_batch.workers.crash_guard import CrashGuard
from llava_batch.workers.shared_state import SharedState
from tests.without_ray import LocalState, go_without_ray

ROW = {"unit": "a", "ordinal": 3, "end": False}
NAME = ("generate", "a", 3)


class Cluster(LocalState):
    """The shared state of a cluster whose dead nodes the test says."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.state = SharedState(lambda: self.dead)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    go_without_ray(monkeypatch)
    return Cluster()


def guard(cluster: Cluster) -> CrashGuard:
    return CrashGuard(cluster, "generate", 3)


def test_a_row_whose_nodes_were_lost_is_as_new_however_often(cluster, monkeypatch) -> None:
    # A preempted node counted as its rows' fault: three of them, and its rows were given up.
    for number in range(5):
        monkeypatch.setattr(place, "node_id", lambda number=number: f"node {number}")
        assert guard(cluster).is_clean([ROW]), number
        cluster.dead.add(f"node {number}")
    assert cluster.state.lost() == {f"node {n}": 1 for n in range(4)}


def test_a_row_that_kills_its_process_is_given_up_among_nodes_that_are_lost(
    cluster, monkeypatch
) -> None:
    monkeypatch.setattr(place, "node_id", lambda: "stays")
    assert guard(cluster).is_clean([ROW])
    monkeypatch.setattr(place, "node_id", lambda: "goes")
    assert not guard(cluster).is_clean([ROW])
    assert guard(cluster).may_try(ROW)
    cluster.dead.add("goes")
    monkeypatch.setattr(place, "node_id", lambda: "stays")
    assert guard(cluster).may_try(ROW) and guard(cluster).may_try(ROW)
    assert not guard(cluster).may_try(ROW), "three deaths on a node that lives"


def test_only_what_was_in_hand_of_the_engine_is_said_to_be_answered_again() -> None:
    state = SharedState(lambda: {"gone"})
    for stage in ("read", "prepare", "generate"):
        state.begin([(stage, "a", 0)], "gone")
        state.begin_if_clean([(stage, "a", 0)], "here")
    assert state.lost() == {"gone": 1}
