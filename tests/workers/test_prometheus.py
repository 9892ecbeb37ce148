"""The metrics, as a real Prometheus sees them when it scrapes a real Ray."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

JOB = """
import sys, time, ray
from llava_batch import Job, run
ray.init(num_cpus=2, include_dashboard=True, _metrics_export_port=int(sys.argv[3]),
         _temp_dir=sys.argv[4], log_to_driver=False)
run(Job(input=(sys.argv[1],), output=sys.argv[2], quiet=True))
print("done", flush=True)
time.sleep(120)
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _seen(port: int) -> dict[str, float]:
    """Our metrics in Prometheus, summed over their labels."""
    url = f"http://127.0.0.1:{port}/api/v1/query?query=%7B__name__%3D~%22ray_llava_batch_.%2A%22%7D"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            results = json.load(answer)["data"]["result"]
    except OSError:
        return {}
    seen: dict[str, float] = {}
    for result in results:
        name = result["metric"]["__name__"]
        seen[name] = seen.get(name, 0.0) + float(result["value"][1])
    return seen


@pytest.mark.skipif(not shutil.which("prometheus"), reason="Debian's prometheus is not installed")
def test_prometheus_sees_images_tokens_and_stages(demo_shards, tmp_path):
    ray_port, own_port = _free_port(), _free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: ray\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{ray_port}']}}]\n"
    )
    folder = tempfile.mkdtemp(prefix="lbmet", dir="/tmp")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, str(demo_shards[0]), str(tmp_path / "out"), str(ray_port), folder],
        cwd=Path(__file__).parents[2], env=clean | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    prometheus = subprocess.Popen(
        ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
         f"--web.listen-address=127.0.0.1:{own_port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert job.stdout is not None and job.stdout.readline().strip() == "done"
        wanted = {
            "ray_llava_batch_images_total": 24.0,
            "ray_llava_batch_rows_total": 24.0,
            "ray_llava_batch_stage_rows_total": 48.0 + 2,  # two stages, and the unit's end row
        }
        deadline = time.monotonic() + 60
        seen: dict[str, float] = {}
        while time.monotonic() < deadline and not wanted.items() <= seen.items():
            time.sleep(1)
            seen = _seen(own_port)
        assert wanted.items() <= seen.items(), seen
        assert seen["ray_llava_batch_answer_tokens_total"] > 0
        assert 0 < seen["ray_llava_batch_slot_occupancy"] <= 1
    finally:
        for process in (prometheus, job):
            process.terminate()
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)
