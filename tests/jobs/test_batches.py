"""What goes from stage to stage through Ray: batches as the stages made them, of so many units at once."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.cloudpickle

from llava_batch import pipeline
from llava_batch.driver.sizing import Sizing
from llava_batch.generate import actor as generate_actor
from llava_batch.job import Job
from llava_batch.prepare import actor as prepare_actor
from llava_batch.read import source
from llava_batch.tables import packed, unpacked
from llava_batch.unit import Unit
from llava_batch.workers import shared_state
from tests.shards import picture, put, reading, tar_bytes, units_of

pytestmark = pytest.mark.usefixtures("local_ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

SIZING = Sizing(
    workers=1, prepare_workers=2, gpus_per_worker=0.0, threads_per_worker=1, read_workers=1
)


class Passing:
    """A preparer that passes on what comes, and says in which process it was."""

    def __init__(self, job: Job, *rest: object) -> None:
        self._folder = Path(job.output)

    def __call__(self, batch):
        table = unpacked(batch)
        at = {"pid": os.getpid(), "units": sorted(set(table["unit"].to_pylist()))}
        put(self._folder / f"{time.time_ns()}", json.dumps(at).encode())
        yield batch


class Counting:
    """A generator that passes on all but the images."""

    def __init__(self, *rest: object) -> None:
        pass

    async def __call__(self, batch):
        return packed(unpacked(batch).drop_columns(["images"]))


def read_slowly(units: list[Unit], how, shared):
    """The one unit's blocks, with a word of when it was open."""
    (unit,), began = units, time.time()
    for block in source.read_blocks(unit, how):
        time.sleep(0.15)
        yield block
    put(
        Path(how.image_root or "") / unit.name,
        json.dumps([began, time.time(), os.getpid()]).encode(),
    )


def test_batches_are_not_cut_and_few_units_are_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray cut the blocks of few units to single rows, and all CPUs of a cluster opened units at once.
    for name in "abcdef":
        images = {f"{n:03}.png": picture(n) for n in range(80)}
        put(tmp_path / "in" / f"{name}.tar", tar_bytes(images))
    monkeypatch.setattr(prepare_actor, "Prepare", Passing)
    monkeypatch.setattr(generate_actor, "Generate", Counting)
    monkeypatch.setattr(source, "_in_tasks", lambda units: [[unit] for unit in units])  # not small
    monkeypatch.setattr(source, "_read_few", read_slowly)
    job = Job(output=str(tmp_path / "seen"))
    plan: Any = SimpleNamespace(
        job=job,
        todo=units_of(tmp_path / "in"),
        reading=reading(image_root=str(tmp_path / "open")),
        lookup=lambda: None,
        slot_tokens=None,
        settled=SimpleNamespace(recipe=None),
    )
    batches = [*pipeline.answers(plan, SIZING, shared_state.start())]
    assert sorted(b.num_rows for b in batches) == [16 + 1] * 6 + [32] * 12
    spans = [json.loads(p.read_text()) for p in (tmp_path / "open").iterdir()]
    assert len(spans) == 6
    assert max(sum(b <= t < e for b, e, _ in spans) for t, *_ in spans) == 1
    seen = [json.loads(p.read_text()) for p in (tmp_path / "seen").iterdir()]
    readers, preparers = {pid for *_, pid in spans}, {at["pid"] for at in seen}
    assert readers.isdisjoint(preparers), "a unit was prepared by the one process that read it"
