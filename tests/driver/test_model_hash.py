"""A checkpoint is told by all that can change an answer, and by nothing else."""

import hashlib
import os
from pathlib import Path

import pytest

from llava_batch.driver import model_hash as module
from llava_batch.driver.model_hash import first_bytes_hash, model_hash

WEIGHTS = 3 * 2**20


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def checkpoint(folder: Path, *, last: bytes = b"\0") -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "model.safetensors").write_bytes(bytes(WEIGHTS - 1) + last)
    (folder / "README.md").write_text("a model")
    return str(folder)


def test_weights_that_differ_behind_their_first_64_kib_are_another_model(tmp_path: Path) -> None:
    # A fine-tuned model saved over the old one was resumed as the same.
    one, other = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b", last=b"\1")
    assert first_bytes_hash(one) == first_bytes_hash(other)
    assert model_hash(one) != model_hash(other)


def test_the_same_files_elsewhere_with_another_readme_are_the_same_model(tmp_path: Path) -> None:
    # A hub commit that changed only a README refused the nightly job, and so did another path.
    one, other = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "deep" / "b")
    Path(other, "README.md").write_text("the same model, described at length")
    assert model_hash(one) == model_hash(other)
    Path(other, "tokenizer.json").write_text("{}")
    assert model_hash(one) != model_hash(other)


def test_a_hub_snapshot_is_the_same_model_as_its_files_and_its_blobs_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoint(tmp_path / "plain")
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in Path(plain).iterdir():
        data = path.read_bytes()
        large = path.suffix == ".safetensors"
        name = (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
        (blobs / name).write_bytes(data)
        (snapshot / path.name).symlink_to(blobs / name)
    expected = model_hash(plain)
    monkeypatch.setattr(module, "_read_through", lambda path: pytest.fail("a blob was read"))
    assert model_hash(str(snapshot)) == expected


def test_a_large_file_is_read_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "a")
    read: list[Path] = []
    whole = module._read_through

    def noting(path: Path) -> str:
        read.append(path)
        return whole(path)

    monkeypatch.setattr(module, "_read_through", noting)
    before = model_hash(folder)
    assert model_hash(folder) == before
    assert len(read) == 1
    weights = Path(folder, "model.safetensors")
    weights.write_bytes(b"\1" * WEIGHTS)
    os.utime(weights, ns=(1, 1))
    assert model_hash(folder) != before
    assert len(read) == 2


def test_a_cache_that_cannot_be_read_or_written_costs_time_and_nothing_else(
    tmp_path: Path, own_cache: Path
) -> None:
    folder = checkpoint(tmp_path / "a")
    expected = model_hash(folder)
    (own_cache / "llava_batch" / "model_hashes.json").write_text("[1, 2")
    assert model_hash(folder) == expected
    (own_cache / "llava_batch" / "model_hashes.json").unlink()
    (own_cache / "llava_batch").rmdir()
    (own_cache / "llava_batch").write_text("a file in the folder's place")
    assert model_hash(folder) == expected
