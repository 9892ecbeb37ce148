"""A run's end waits a while for the workers' shared state, and loses figures and nothing else."""

import time

import pytest
import ray

from llava_batch.driver.heard import hear
from llava_batch.workers import shared_state

pytestmark = pytest.mark.usefixtures("local_ray")


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
    heard = hear(shared)
    assert heard.stages == {}
    assert "was lost on the way and began anew" in (heard.missing or "")


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


ray.cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
