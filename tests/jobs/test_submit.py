"""`ray job submit` against a real cluster that the test starts and ends itself."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ("--question", "How many objects are there?", "--question", "Is there a star?")


def _free_port() -> int:
    """A free port outside 10002-19999, which Ray's workers use."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 10_002 <= port <= 19_999:
            return port


def _environment() -> dict[str, str]:
    """This interpreter first on the PATH, no token asked for, no Ray of another's."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}"
    return mine | {"PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of the dashboard of a cluster of two CPUs."""
    pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
    folder = tempfile.mkdtemp(prefix="lbsub", dir="/tmp")
    dashboard = _free_port()
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={_free_port()}", f"--temp-dir={folder}",
        f"--dashboard-port={dashboard}", "--include-dashboard=true",
        # Every Ray on a machine wants the same default port for its agent, which takes the jobs.
        f"--dashboard-agent-listen-port={_free_port()}",
        f"--dashboard-agent-grpc-port={_free_port()}",
        f"--metrics-export-port={_free_port()}",
    ]  # fmt: skip
    head = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        _wait_for(dashboard, head)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int, head: subprocess.Popen) -> None:
    """Until the cluster answers for its jobs, which is some time after the dashboard's port opens."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended by itself"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=10):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError("the cluster did not come up")


def _submit(address: str, *command: str) -> subprocess.CompletedProcess:
    """`ray job submit`, again where the cluster says that its agent is not up yet."""
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            ["ray", "job", "submit", f"--address={address}", "--working-dir=.", "--", *command],
            cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def test_a_submitted_job_writes_the_same_tables_as_the_script(cluster, demo_shards, tmp_path):
    flags = [*QUESTIONS, "--input", str(demo_shards[0])]
    done = _submit(cluster, "jobs/vqa.py", *flags, "--output", str(tmp_path / "submitted"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    subprocess.run(
        [sys.executable, "jobs/vqa.py", *flags, "--output", str(tmp_path / "script"), "--quiet"],
        cwd=ROOT, env=_environment(), check=True, timeout=400,
    )  # fmt: skip
    one, other = (
        pq.read_table(tmp_path / name / "shapes-00000.parquet") for name in ("submitted", "script")
    )
    assert one.to_pylist() == other.to_pylist()
    assert one.schema.equals(other.schema)


def test_a_relative_output_is_refused_under_submit(cluster, demo_shards):
    done = _submit(cluster, "jobs/caption.py", "--input", str(demo_shards[0]), "--output", "out")
    assert done.returncode != 0
    assert "--output out: under `ray job submit` a relative path" in done.stdout + done.stderr
