"""Shards and answers over s3://, against a real S3 server on loopback, with a kill in the middle."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest

from llava_batch.read.find import find
from llava_batch.storage import without_credentials
from llava_batch.unit import Unit
from tests.s3_server import KEY, SECRET, needs_a_server, s3
from tests.shards import picture, put, put_parquet, rows_of, tar_bytes

JOB = Path(__file__).resolve().parents[2] / "jobs" / "caption.py"
__all__ = ["s3"]
"""A fixture is found where its name stands."""

COLUMNS = ["id", "prompt", "answer", "status", "error_code"]
NUM_UNITS, IN_EACH = 6, 20

pytestmark = [needs_a_server, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for number in range(NUM_UNITS):
        images = {f"{n:03}": picture(n) if n % 9 else b"<html>" for n in range(IN_EACH)}
        if number % 2:
            columns = {"key": list(images), "png": list(images.values())}
            put_parquet(folder / f"{number}.parquet", columns)
        else:
            tar = tar_bytes({f"{key}.png": data for key, data in images.items()})
            put(folder / f"{number}.tar", tar)
    return folder


def start(
    source: str, out: str, ray: Path, gateway: str = "", publish: str = "", **keys: str
) -> subprocess.Popen:
    """The job as a user runs it, with credentials by the usual variables."""
    mine = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": gateway, "RAY_TMPDIR": str(ray)}  # fmt: skip
    others = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
    return subprocess.Popen(
        [
            sys.executable,
            str(JOB),
            "--input",
            source,
            "--output",
            out,
            "--max-new-tokens",
            "3",
            *(["--publish", publish] if publish else []),
        ],
        env=others | (mine | keys if gateway else {"RAY_TMPDIR": str(ray)}),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def rows(path: str, fs: pafs.FileSystem | None = None) -> list[dict]:
    table = ds.dataset(path, filesystem=fs, format="parquet").to_table(columns=COLUMNS)
    return table.sort_by("id").to_pylist()


def records(fs: pafs.FileSystem, out: str) -> list[str]:
    selector = pafs.FileSelector(f"{out}/_manifest", recursive=True, allow_not_found=True)
    names = [i.path for i in fs.get_file_info(selector) if i.path.endswith(".json")]
    return [n for n in names if not n.rpartition("/")[2].startswith("_")]


def text_of(fs: pafs.FileSystem, out: str) -> str:
    infos = fs.get_file_info(pafs.FileSelector(out, recursive=True))
    files = [i.path for i in infos if i.type == pafs.FileType.File]
    return b"".join(fs.open_input_stream(path).read() for path in files).decode("latin-1")


def test_a_run_over_s3_that_is_killed_is_resumed_to_the_same_answers(s3, corpus, tmp_path_factory):
    ray, local = tmp_path_factory.mktemp("r"), tmp_path_factory.mktemp("undisturbed")
    pafs.copy_files(str(corpus), "lake/in", destination_filesystem=s3.fs)
    undisturbed = start(str(corpus), str(local), ray)
    assert undisturbed.wait(timeout=300) == 0, undisturbed.communicate()

    killed = start("s3://lake/in", "s3://lake/out", ray, s3.gateway)
    deadline = time.monotonic() + 300
    while not records(s3.fs, "lake/out") and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert killed.poll() is None, killed.communicate()
    killed.kill()
    said = "".join(killed.communicate())
    done = {path: s3.fs.get_file_info(path).mtime_ns for path in records(s3.fs, "lake/out")}
    assert 1 <= len(done) < NUM_UNITS

    resumed = start("s3://lake/in", "s3://lake/out", ray, s3.gateway)
    said += "".join(resumed.communicate(timeout=300))
    assert resumed.returncode == 0, said
    told = json.loads(s3.fs.open_input_stream("lake/out/_run.json").read())["run"]
    assert told["units_done_before"] >= len(done)  # one may have been whole without its record
    assert {path: s3.fs.get_file_info(path).mtime_ns for path in done} == done
    assert len(records(s3.fs, "lake/out")) == NUM_UNITS
    assert rows("lake/out", s3.fs) == rows(str(local))
    for text in (said, text_of(s3.fs, "lake/out")):
        assert KEY not in text and SECRET not in text


def test_credentials_in_a_uri_reach_the_workers_and_are_shown_nowhere(s3, corpus, tmp_path_factory):
    ray = tmp_path_factory.mktemp("r")
    pafs.copy_files(str(corpus / "0.tar"), "lake/one/0.tar", destination_filesystem=s3.fs)
    port = s3.gateway.rpartition(":")[2]
    uri = f"s3://{KEY}:{SECRET}@lake/{{}}?endpoint_override=127.0.0.1:{port}&scheme=http"
    job = start(uri.format("one"), uri.format("by-uri"), ray)
    said = "".join(job.communicate(timeout=300))
    assert job.returncode == 0, said
    assert len(rows("lake/by-uri", s3.fs)) == IN_EACH
    for text in (said, text_of(s3.fs, "lake/by-uri")):
        assert KEY not in text and SECRET not in text


def test_a_delta_table_is_read_and_its_keys_are_shown_nowhere(s3, tmp_path_factory, monkeypatch):
    deltalake = pytest.importorskip("deltalake")
    ray = tmp_path_factory.mktemp("r")
    options = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "aws_region": "us-east-1",
               "aws_endpoint": s3.gateway, "allow_http": "true",
               "aws_conditional_put": "etag"}  # fmt: skip
    pictures = pa.table({"image": pa.array([picture(n) for n in range(5)], pa.binary()),
                         "n": range(5), "dt": [*"aabbb"]})  # fmt: skip
    uri = "s3://lake/tables/shop"
    deltalake.write_deltalake(uri, pictures, partition_by=["dt"], storage_options=options)
    deltalake.DeltaTable(uri, storage_options=options).delete("n = 1")
    job = start("s3://lake/tables", "s3://lake/of-delta", ray, s3.gateway)
    said = "".join(job.communicate(timeout=300))
    assert job.returncode == 0, said
    assert len(rows("lake/of-delta", s3.fs)) == 4
    told = json.loads(s3.fs.open_input_stream("lake/of-delta/_run.json").read())["run"]
    assert told["snapshots"] == {"shop": 1}
    for text in (said, text_of(s3.fs, "lake/of-delta")):
        assert KEY not in text and SECRET not in text
    port = s3.gateway.rpartition(":")[2]
    by_uri = f"s3://{KEY}:{SECRET}@lake/tables/shop?endpoint_override=127.0.0.1:{port}&scheme=http"
    assert sorted(u.name for u in find([by_uri + "&region=us-east-1"]).units) == sorted(
        u.name for u in find_by_variables(uri, s3.gateway, monkeypatch)
    )


def test_iceberg_and_lance_tables_are_read_with_the_same_keys(s3, monkeypatch):
    lance = pytest.importorskip("lance")
    sql = pytest.importorskip("pyiceberg.catalog.sql")
    pictures = pa.table({"image": pa.array([picture(n) for n in range(5)], pa.binary())})
    keys = {"s3.endpoint": s3.gateway, "s3.access-key-id": KEY, "s3.secret-access-key": SECRET,
            "s3.region": "us-east-1", "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"}  # fmt: skip
    catalog = sql.SqlCatalog("c", uri="sqlite:///:memory:", warehouse="s3://lake/ice", **keys)
    catalog.create_namespace("ns")
    catalog.create_table("ns.shop", schema=pictures.schema).append(pictures)
    options = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "aws_region": "us-east-1",
               "aws_endpoint": s3.gateway, "allow_http": "true"}  # fmt: skip
    lance.write_dataset(pictures, "s3://lake/l/shop.lance", storage_options=options).delete(
        "_rowid = 2"
    )
    for uri, numbers in (("s3://lake/ice", [0, 1, 2, 3, 4]), ("s3://lake/l", [0, 1, 3, 4])):
        (unit,) = find_by_variables(uri, s3.gateway, monkeypatch)
        read = rows_of(pickle.loads(pickle.dumps(unit)))  # as a worker has it
        assert [row["key"] for row in read] == [str(n) for n in numbers]
        assert [row["images"] for row in read] == [[picture(n)] for n in numbers]
        assert KEY not in f"{unit}{unit.input}" and SECRET not in f"{unit}{unit.input}"


def find_by_variables(uri: str, gateway: str, monkeypatch: pytest.MonkeyPatch) -> list[Unit]:
    """The units, with the credentials as the usual variables have them."""
    for name, value in {"ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET, "REGION": "us-east-1",
                        "ENDPOINT_URL": gateway}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    return find([uri]).units


def test_a_wrong_key_is_refused_in_a_line_before_anything_starts(s3, tmp_path_factory):
    ray = tmp_path_factory.mktemp("r")
    job = start("s3://lake/in", "s3://lake/wrong", ray, s3.gateway,
                AWS_SECRET_ACCESS_KEY="quite-another")  # fmt: skip
    _, said = job.communicate(timeout=120)
    assert job.returncode == 2, said
    assert len(said.strip().splitlines()) == 1 and "check the" in said
    assert "quite-another" not in said and KEY not in said


def test_answers_are_published_into_a_delta_table_on_the_store_and_no_key_is_told(
    s3, corpus, tmp_path_factory
):
    from deltalake import DeltaTable

    ray, out = tmp_path_factory.mktemp("r"), tmp_path_factory.mktemp("out")
    port = s3.gateway.rpartition(":")[2]
    in_uri = f"s3://{KEY}:{SECRET}@lake/by-uri-table?endpoint_override=127.0.0.1:{port}&scheme=http"
    options = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
               "AWS_ENDPOINT_URL": s3.gateway, "AWS_ALLOW_HTTP": "true"}  # fmt: skip
    said = ""
    for shard, gateway, uri in (
        ("0.tar", s3.gateway, "s3://lake/table"),
        ("1.parquet", "", in_uri),
    ):
        table = without_credentials(uri)
        for source in ("0.tar", shard):  # what is there already, then one more
            job = start(str(corpus / source), str(out), ray, gateway, publish=f"delta:{uri}")
            said += "".join(job.communicate(timeout=300))
            assert job.returncode == 0, said
        found = DeltaTable(table, storage_options=options).to_pyarrow_table(columns=COLUMNS)
        assert found.sort_by("id").to_pylist() == rows(str(out))
        assert KEY not in text_of(s3.fs, table.removeprefix("s3://"))
    for text in (said, *(p.read_bytes().decode("latin-1") for p in out.rglob("*") if p.is_file())):
        assert KEY not in text and SECRET not in text
    refused = start(str(corpus / "0.tar"), str(out), ray, s3.gateway, publish="delta:s3://lake/table",
                    AWS_SECRET_ACCESS_KEY="quite-another")  # fmt: skip
    _, said = refused.communicate(timeout=300)
    assert refused.returncode == 2 and len(said.strip().splitlines()) == 1, said
    assert "quite-another" not in said and KEY not in said
