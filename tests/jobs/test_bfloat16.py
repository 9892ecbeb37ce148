"""A bfloat16 run on CPU that is killed and resumed, with other slots, leaves the undisturbed run's own bytes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch

from llava_batch import Job, run
from llava_batch.demo.shards import write_shards
from llava_batch.engine.kernels import choose, cpu_build
from llava_batch.engine.kernels.contract import Place

pytestmark = pytest.mark.usefixtures("local_ray")
COUNT = 40
"""Scenes in one shard: more than one block of what is read."""


def native() -> None:
    """Skip where the kernels that the promise is made for cannot be had."""
    place = Place(device="cpu", dtype=torch.bfloat16)
    missing = choose.why_not("native", place) or cpu_build.why_not_built(torch.bfloat16)
    if missing:
        pytest.skip(missing)


def killed_with_a_part_kept(settings: dict[str, Any]) -> None:
    """A run of these settings in a process that ends by SIGKILL when some of its rows are kept."""
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-m", "tests.jobs.killed", json.dumps(settings)],
        env=os.environ | {"RAY_ADDRESS": address}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_and_resumed_run_has_the_bytes_of_the_undisturbed_one(tmp_path: Path) -> None:
    native()
    shard, _ = write_shards(tmp_path / "in", count=COUNT, seed=31)
    settings: dict[str, Any] = {
        "input": (str(shard),), "dtype": "bfloat16", "quiet": True, "max_new_tokens": 12,
        "question": ("Describe the image.", "How many objects are there?"),
        "num_samples": 2, "temperature": 0.7,
    }  # fmt: skip
    disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"
    killed_with_a_part_kept(settings | {"output": str(disturbed), "slots": 3})
    assert not list(disturbed.glob("*.parquet"))
    resumed = run(Job(**settings, output=str(disturbed), slots=7))
    assert 0 < resumed.run["images_taken_up"] < COUNT, "the rest alone, with other neighbours"
    run(Job(**settings, output=str(whole), slots=16))
    name = f"{shard.stem}.parquet"
    ours, theirs = (pq.read_table(folder / name).to_pylist() for folder in (disturbed, whole))
    assert len(ours) == COUNT * 4 and {row["status"] for row in ours} == {"ok"}
    assert [a for a, b in zip(ours, theirs, strict=True) if a != b] == []
    assert (disturbed / name).read_bytes() == (whole / name).read_bytes()
