"""Workers and drivers that die: a killer row costs itself, and a killed run is resumed to the same end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import ray.cloudpickle

from llava_batch import pipeline
from llava_batch.driver.plan import on_machines
from llava_batch.errors import RunFailed, UsageError
from llava_batch.generate import actor as generate_actor
from llava_batch.generate.actor import Generate
from llava_batch.job import Job
from llava_batch.prepare import actor as prepare_actor
from llava_batch.prepare.actor import Prepare
from tests.shards import picture, put, put_parquet, tar_bytes

pytestmark = pytest.mark.usefixtures("local_ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

JOB = Path(__file__).resolve().parents[2] / "jobs" / "caption.py"
COLUMNS = ["id", "prompt", "answer", "status", "error_code"]


class DeadlyPrepare(Prepare):
    """Dies or hangs at certain keys, as a decoder might."""

    def _put_pixels(self, images, out):
        if out["key"] == "kills-prepare":
            os._exit(1)
        if out["key"] == "hangs-prepare":
            time.sleep(10**6)
        return super()._put_pixels(images, out)


class DeadlyGenerate(Generate):
    """Dies at a certain key, as a device might."""

    def _request(self, row, ask, pixels):
        if row["key"] == "kills-generate":
            os._exit(1)
        return super()._request(row, ask, pixels)


def corpus(folder: Path, num_units: int = 4, in_each: int = 24) -> Path:
    """Tars and Parquet files in turn; one image in ten is broken."""
    for number in range(num_units):
        images = {
            f"{n:03}": picture(n) if n % 10 else picture(n)[:40]
            for n in range(number * in_each, (number + 1) * in_each)
        }
        if number % 2:
            columns = {"key": list(images), "png": list(images.values())}
            put_parquet(folder / f"{number}.parquet", columns)
        else:
            members = {f"{key}.png": data for key, data in images.items()}
            put(folder / f"{number}.tar", tar_bytes(members))
    return folder


def job(folder: Path, out: Path, **changes) -> Job:
    return Job(input=(str(folder),), output=str(out), max_new_tokens=3, quiet=True, **changes)


def rows(out: Path) -> list[dict]:
    return ds.dataset(out).to_table(columns=COLUMNS).sort_by("id").to_pylist()


def test_rows_that_kill_or_hang_their_worker_cost_themselves_and_no_other(tmp_path, monkeypatch):
    keys = ["kills-prepare", "hangs-prepare", "kills-generate", *(f"{n:03}" for n in range(40))]
    members = {f"{key}.png": picture(n) for n, key in enumerate(keys)}
    put(tmp_path / "in" / "a.tar", tar_bytes(members))
    monkeypatch.setattr(prepare_actor, "Prepare", DeadlyPrepare)
    monkeypatch.setattr(generate_actor, "Generate", DeadlyGenerate)
    pipeline.run(job(tmp_path / "in", tmp_path / "out", max_tries=2, stall_timeout_s=20.0))
    codes = {row["id"].partition("/")[2]: row["error_code"] for row in rows(tmp_path / "out")}
    assert codes.keys() == set(keys)
    assert {key for key, code in codes.items() if code} == set(keys[:3])
    assert {codes[key] for key in keys[:3]} == {"worker_died"}


class DeadlyLoad(Generate):
    """A model that does not load."""

    def __init__(self, *arguments) -> None:
        raise RuntimeError("no such device")


def test_a_worker_that_can_never_start_ends_the_run_with_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(generate_actor, "Generate", DeadlyLoad)
    with pytest.raises(Exception, match="no such device"):
        pipeline.run(job(corpus(tmp_path / "in", 1, 4), tmp_path / "out", max_tries=1))


@pytest.mark.parametrize("wanted", [{"workers": 50}, {"prepare_workers": 50}])
def test_a_cluster_too_small_is_refused_with_what_would_fit(tmp_path, wanted):
    with pytest.raises(UsageError, match="give at most"):
        pipeline.run(job(corpus(tmp_path / "in", 1, 4), tmp_path / "out", **wanted))
    assert not (tmp_path / "out").exists()


def test_a_unit_whose_file_goes_away_is_left_open_and_the_rest_is_committed(tmp_path, monkeypatch):
    folder, out = corpus(tmp_path / "in", 2, 10), tmp_path / "out"
    make = on_machines

    def then_lost(*arguments, **named):
        plan = make(*arguments, **named)
        (folder / "0.tar").rename(tmp_path / "away")
        return plan

    monkeypatch.setattr(pipeline, "on_machines", then_lost)
    with pytest.raises(RunFailed, match="1 unit could not be read"):
        pipeline.run(job(folder, out))
    assert {row["id"].partition("/")[0] for row in rows(out)} == {"1"}
    monkeypatch.undo()
    (tmp_path / "away").rename(folder / "0.tar")
    pipeline.run(job(folder, out))
    assert len(rows(out)) == 20


def start(folder: Path, out: Path, ray_folder: Path) -> subprocess.Popen:
    """The job on a local Ray of its own."""
    environment = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, str(JOB), "--input", str(folder), "--output", str(out),
         "--max-new-tokens", "3", "--quiet"],
        env=environment | {"RAY_TMPDIR": str(ray_folder)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def committed(out: Path) -> dict[str, int]:
    """The committed tables, and when each was written."""
    records = (out / "_manifest").rglob("[!_]*.json")
    names = [json.loads(path.read_bytes())["table"] for path in records]
    return {name: (out / name).stat().st_mtime_ns for name in names}


def wait_for_units(out: Path, process: subprocess.Popen, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(committed(out)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]


def test_a_run_that_is_stopped_and_killed_is_resumed_to_the_same_answers(
    tmp_path, tmp_path_factory
):
    folder, out = corpus(tmp_path / "in", 12, 40), tmp_path / "out"
    pipeline.run(job(folder, tmp_path / "undisturbed"))
    short = tmp_path_factory.mktemp("r")  # sockets live below it

    stopped = start(folder, out, short)
    wait_for_units(out, stopped, 1)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert "run it again to resume" in said
    assert json.loads((out / "_run.json").read_bytes())["status"] == "stopped"
    assert not (out / "_manifest" / "_owner.json").exists()
    first = committed(out)
    assert 1 <= len(first) < 12

    killed = start(folder, out, short)
    wait_for_units(out, killed, len(first) + 1)
    killed.kill()
    killed.communicate()
    assert (out / "_manifest" / "_owner.json").exists()
    second = committed(out)

    summary = pipeline.run(job(folder, out))
    assert summary.run["units_done_before"] >= len(second)
    last = committed(out)
    assert len(last) == 12
    assert all(last[name] == at for name, at in (first | second).items()), "answered again"
    assert rows(out) == rows(tmp_path / "undisturbed")
    assert not [*out.rglob("_tmp-*")]
