"""A run's end waits a while for the workers' shared state, and loses figures and nothing else."""

import sys
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import ray.cloudpickle

from llava_batch import pipeline
from llava_batch.driver.heard import hear
from llava_batch.job import Job
from llava_batch.prepare import actor as prepare_actor
from llava_batch.prepare.actor import Prepare
from llava_batch.workers import shared_state
from tests.shards import picture, put, tar_bytes

pytestmark = pytest.mark.usefixtures("local_ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def test_what_the_workers_left_word_of_is_heard() -> None:
    shared = shared_state.start()
    shared.report.remote("read", "w", {"rows": 3, "busy_s": 1.0})
    shared.offer.remote([(1, "a/0", b"jpeg")])
    heard = hear(shared)
    assert heard.stages["read"]["rows"] == 3
    assert heard.thumbnails == [(1, "a/0", b"jpeg")]
    assert heard.missing is None


def test_a_shared_state_that_began_anew_is_told() -> None:
    shared = shared_state.start()
    ray.get(shared.report.remote("read", "w", {"rows": 3, "busy_s": 1.0}))
    ray.kill(shared, no_restart=False)
    deadline = time.monotonic() + 60  # the kill arrives when it does
    while not ray.get(shared.began_anew.remote()) and time.monotonic() < deadline:
        time.sleep(0.01)
    heard = hear(shared)
    assert heard.stages == {}
    assert "was lost on the way and began anew" in (heard.missing or "")
    assert "rows that lost nodes had in hand" in (heard.missing or "")


def test_a_shared_state_that_is_gone_or_hangs_is_told_and_not_waited_for() -> None:
    # The run had ended, and its process stood there for ever.
    gone = shared_state.start()
    ray.get(gone.stages.remote())
    ray.kill(gone)
    assert "did not answer" in (hear(gone).missing or "")
    hanging = ray.remote(Hanging).options(num_cpus=0).remote()
    assert "did not answer" in (hear(hanging, wait_s=0.1).missing or "")
    ray.kill(hanging)


class Hanging(shared_state.SharedState):
    def stages(self):
        time.sleep(10**6)


class KillsSharedState(Prepare):
    """Ends the shared state's process in the middle of its work."""

    def _put_pixels(self, images, out):
        if out["key"] == "040":
            ray.kill(self._guard.shared, no_restart=False)
        return super()._put_pixels(images, out)


def test_a_shared_state_lost_in_the_middle_costs_no_row_and_the_summary_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"{n:03}.png": picture(n) for n in range(80)}
    tar = put(tmp_path / "a.tar", tar_bytes(members))
    monkeypatch.setattr(prepare_actor, "Prepare", KillsSharedState)
    out = tmp_path / "out"
    summary = pipeline.run(Job(input=(str(tar),), output=str(out), max_new_tokens=2, quiet=True))
    rows = ds.dataset(out).to_table(columns=["key", "status"]).to_pylist()
    assert [r["key"] for r in rows] == [f"{n:03}" for n in range(80)]
    assert {r["status"] for r in rows} == {"ok"}
    assert any("began anew" in note for note in summary.notes)
