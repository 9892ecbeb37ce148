"""A run in which nothing moves ends in a sentence: what was waited for, and what to do."""

import subprocess
import sys
from collections.abc import Iterator

import pyarrow as pa
import pytest
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import ObjectLostError

from llava_batch.driver import standstills
from llava_batch.driver.sizing import Sizing
from llava_batch.errors import RunFailed
from llava_batch.job import Job
from tests.shards import picture, put

CPU = Sizing(workers=2, prepare_workers=1, gpus_per_worker=0.0, threads_per_worker=1)


def test_a_storage_may_be_away_and_a_worker_silent_for_as_long_as_they_were_given() -> None:
    # Ray Data gave up after half an hour, whatever --storage-patience said.
    assert standstills.limit_s(Job()) == 1800
    assert standstills.limit_s(Job(storage_patience=7200.0)) > 7200
    assert standstills.limit_s(Job(stall_timeout_s=5000.0)) > 5000


def breaking(error: Exception) -> Iterator[pa.Table]:
    yield pa.table({})
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ExecutionTimeoutError("Operators still running: …"), "no node came back that has room"),
        (ObjectLostError("00ff", None, ""), "were lost with their node, and could not be made"),
    ],
)
def test_what_ray_gives_up_is_told_without_its_traceback(monkeypatch, error, said) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 3.0})
    with pytest.raises(
        RunFailed, match=f"{said}.*; what was answered stands, run again to go on"
    ) as told:
        list(standstills.told(breaking(error), CPU))
    assert "\n" not in str(told.value)


def test_a_card_that_never_comes_free_ends_the_run_in_a_sentence(tmp_path) -> None:
    put(tmp_path / "in" / "a.png", picture())
    # A Ray of its own, which believes in a GPU; somebody else holds it.
    code = f"""
import ray
from llava_batch import Job, run
from llava_batch.driver import cluster, gpus
from llava_batch.errors import RunFailed
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
class Other:
    def here(self): return 1
other = ray.remote(Other).options(num_cpus=0, num_gpus=1).remote()
ray.get(other.here.remote())
cluster.NOTHING_S = 4.0
gpus.LOOK_TIMEOUT_S = 1.0
try:
    run(Job(input=({str(tmp_path / "in")!r},), output={str(tmp_path / "out")!r},
            storage_patience=0.0, stall_timeout_s=1.0, quiet=True))
except RunFailed as error:
    print("TOLD", error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    (told,) = [line for line in ran.stdout.splitlines() if line.startswith("TOLD")]
    assert "no GPU came free (the cluster has 1 GPU and 1 asked for; `ray status`" in told
    assert "Traceback" not in ran.stderr, ran.stderr
