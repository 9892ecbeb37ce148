"""Whole jobs over tables that only name their images: on disk, in S3, on the web, and nowhere."""

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from llava_batch.job import Job
from llava_batch.pipeline import run
from tests.s3_server import KEY, SECRET, Store, needs_a_server, s3
from tests.shards import picture, put, put_parquet

__all__ = ["s3"]
"""A fixture is found where its name stands."""

pytestmark = pytest.mark.usefixtures("local_ray")
COLUMNS = [
    "id",
    "status",
    "error_code",
    "error_message",
    "image_sha256",
    "answer",
    "prompt",
    "caption",
]
HIDDEN = "notsaidanywhere"


def job(folder: Path, **settings: Any) -> None:
    run(Job(input=(str(folder / "in"),), output=str(folder / "out"), keep=("caption",), quiet=True,
            prompt="{caption}: what is it?", max_new_tokens=3, **settings))  # fmt: skip


def rows(folder: Path) -> dict[str, dict]:
    found = ds.dataset(folder / "out").to_table(columns=COLUMNS).to_pylist()
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in found}


def text_of(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"".join(path.read_bytes() for path in files).decode("latin-1")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server on loopback with one image."""
    put(tmp_path / "web" / "a.png", picture(1))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "busy" in self.path and not (tmp_path / "web" / "busy.png").exists():
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    serve = partial(Quiet, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_each_row_of_a_table_of_paths_and_addresses_stands_with_its_image_or_its_error(
    tmp_path, site
):
    for n in range(30):
        put(tmp_path / "images" / f"{n}.png", picture(n))
    put(tmp_path / "broken.png", b"<html>")
    cells = [
        *(f"images/{n}.png" for n in range(30)),
        f"{site}/a.png?{HIDDEN}",
        f"file://{tmp_path}/images/1.png",
        "images/later.png",
        "../broken.png",
        str(tmp_path / "broken.png"),
        f"{site}/none.png?{HIDDEN}",
        f"http://me:{HIDDEN}@169.254.169.254/latest",
        "data:image/png;base64,AAAA",
        "",
        None,
        f"nowhere://me:{HIDDEN}@x/y?{HIDDEN}",
    ]
    columns = {"image_path": cells, "caption": [f"c{n}" for n in range(len(cells))]}
    put_parquet(tmp_path / "in" / "t.parquet", columns)
    job(tmp_path, image_root=str(tmp_path), allow_http=True)
    found = rows(tmp_path)
    assert len(found) == len(cells)
    codes = [found[f"t/{n}"]["error_code"] for n in range(len(cells))]
    assert (
        codes == [None] * 32 + ["image_missing"] * 2 + ["image_unreadable"] + ["image_missing"] * 6
    )
    assert [found[f"t/{n}"]["caption"] for n in range(len(cells))] == columns["caption"]
    assert found["t/33"]["prompt"] is None or "c33" in found["t/33"]["prompt"]
    assert (
        found["t/1"]["image_sha256"]
        == found["t/30"]["image_sha256"]
        == found["t/31"]["image_sha256"]
    )
    assert HIDDEN not in text_of(tmp_path / "out")

    before = {ident: row["answer"] for ident, row in found.items() if row["status"] == "ok"}
    put(tmp_path / "images" / "later.png", picture(40))
    job(tmp_path, image_root=str(tmp_path), allow_http=True, retry_errors=True)
    again = rows(tmp_path)
    assert again["t/32"]["status"] == "ok" and again["t/32"]["caption"] == "c32"
    assert {i: again[i]["answer"] for i in before} == before and len(again) == len(cells)


def test_web_addresses_that_were_refused_or_did_not_answer_are_fetched_by_retry_errors(
    tmp_path, site
):
    put(tmp_path / "a.png", picture())
    cells = [str(tmp_path / "a.png"), f"{site}/a.png", f"{site}/busy.png"]
    put_parquet(tmp_path / "in" / "t.parquet", {"url": cells, "caption": ["a", "b", "c"]})
    job(tmp_path)
    assert rows(tmp_path)["t/1"]["error_code"] == "image_missing"
    assert "--allow-http" in rows(tmp_path)["t/1"]["error_message"]
    job(tmp_path, allow_http=True, retry_errors=True)
    assert [row["error_code"] for row in rows(tmp_path).values()] == [
        None,
        None,
        "image_unreachable",
    ]
    put(tmp_path / "web" / "busy.png", picture())
    job(tmp_path, allow_http=True, retry_errors=True)
    assert [row["status"] for row in rows(tmp_path).values()] == ["ok"] * 3


@needs_a_server
def test_images_of_a_bucket_are_fetched_with_the_image_roots_keys_which_are_said_nowhere(
    s3: Store, tmp_path
):
    for n in range(40):
        with s3.fs.open_output_stream(f"lake/images/{n}.png") as stream:
            stream.write(picture(n))
    cells = [f"s3://lake/images/{n}.png" if n % 2 else f"images/{n}.png" for n in range(44)]
    captions = [str(n) for n in range(44)]
    put_parquet(tmp_path / "in" / "t.parquet", {"image_uri": cells, "caption": captions})
    port = s3.gateway.rpartition(":")[2]
    root = (
        f"s3://{KEY}:{SECRET}@lake?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    )
    job(tmp_path, image_root=root)
    found = rows(tmp_path)
    codes = [found[f"t/{n}"]["error_code"] for n in range(44)]
    assert codes == [None] * 40 + ["image_missing"] * 4
    for secret in (KEY, SECRET):
        assert secret not in text_of(tmp_path / "out")
