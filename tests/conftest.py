"""Shared by the tests: shards of fresh scenes, and one local Ray for those that run whole jobs."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, so that a change is judged by what it changes; others are drawn with
# `pytest --hypothesis-profile=default`.
settings.register_profile("same", derandomize=True, database=None)
settings.load_profile("same")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SEED = 4_242
NUM_SCENES = 24
"""In each of the two demo shards."""


def pytest_sessionfinish() -> None:
    # A worker's class froze the heap of this process; duckdb complains of what is never collected.
    gc.unfreeze()


@pytest.fixture(scope="session")
def demo_shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tar and a Parquet file of scenes that no training saw."""
    from llava_batch.demo.shards import write_shards

    return write_shards(tmp_path_factory.mktemp("shards"), count=NUM_SCENES, seed=SEED)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of two CPUs in a folder of its own, ended with the session."""
    import ray

    folder = tempfile.mkdtemp(prefix="lbray", dir="/tmp")  # short: sockets live below it
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
