"""Writes that are whole or absent, whatever fails while they are made."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from llava_batch.storage import read_bytes, storage_options, whole_file, write_whole
from tests.away import Clock, Store

LOCAL = pafs.LocalFileSystem()


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_file(LOCAL, str(tmp_path / "x.bin")) as stream:
        stream.write(b"half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_not_finished_is_never_put() -> None:
    store = Store()
    with pytest.raises(KeyError), whole_file(store.fs, "lake/x.bin") as stream:
        stream.write(b"half")
        raise KeyError
    assert store.calls == []


@pytest.mark.parametrize("data", [b"", b"whole"])
def test_what_was_written_is_there_on_a_disk_and_in_a_store(tmp_path: Path, data: bytes) -> None:
    store = Store()
    for fs, path in ((LOCAL, f"{tmp_path}/sub/x.bin"), (store.fs, "lake/x.bin")):
        with whole_file(fs, path) as stream:
            stream.write(data)
        assert fs.open_input_stream(path).read() == data
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x.bin"]


def test_a_file_half_written_has_no_extension_and_is_on_the_disk_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noting(name: str, real: Callable[..., object], *arguments: object) -> object:
        done.append(name)
        return real(*arguments)

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, partial(noting, name, getattr(os, name)))
    with whole_file(LOCAL, str(tmp_path / "x.parquet")) as stream:
        stream.write(b"half")
        assert [p.suffix for p in tmp_path.iterdir()] == [""]
    assert done == ["fsync", "replace", "fsync"]


def test_a_put_that_fails_is_tried_again() -> None:
    store, clock = Store(), Clock()
    store.down = lambda: clock.now < 3
    write_whole(store.fs, "lake/a.parquet", b"whole", clock.patience(3))
    assert store.objects == {"lake/a.parquet": b"whole"}
    assert clock.slept == [1, 2]


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_tables_library_gets_the_credentials_that_stand_in_the_uri(
    bare_environment: pytest.MonkeyPatch,
) -> None:
    bare_environment.setenv("AWS_SESSION_TOKEN", "of another key")
    uri = "s3://AKIA:se%2Fcret@lake/t?endpoint_override=127.0.0.1:9&scheme=http&region=eu-1"
    assert storage_options(uri) == {
        "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "se/cret", "AWS_REGION": "eu-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip


def test_a_tables_library_gets_the_usual_variables_where_the_uri_says_nothing(
    bare_environment: pytest.MonkeyPatch,
) -> None:
    assert storage_options("s3://lake/t") == {}
    assert storage_options("/lake/t") == storage_options("gs://lake/t") == {}
    bare_environment.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    bare_environment.setenv("AWS_SECRET_ACCESS_KEY", "s")
    bare_environment.setenv("AWS_ENDPOINT_URL", "https://store")
    assert storage_options("s3://lake/t") == {
        "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": "https://store",
    }  # fmt: skip


def test_a_large_object_is_read_in_one_request() -> None:
    store = Store()
    store.objects["lake/x"] = bytes(1_000_000)
    assert read_bytes(store.fs, "lake/x") == bytes(1_000_000)
    assert store.calls.count("read") <= 2, "the second finds its end, which a store knows"
