"""Wildcards, brace ranges and folders of very many files: found alike in a store and on a disk, and cheaply."""

import tracemalloc
from itertools import permutations
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest

from llava_batch.errors import UsageError
from llava_batch.read.find import find_units
from llava_batch.storage import locate
from tests.shards import put

LAKE = [
    *(f"s/{n:05}.tar" for n in range(40)),
    "s/_hidden.tar", "t/00000.tar", "t/u/00001.tar", "t/u/v/00001.tar", "t/a.csv", "p/1.jpg", "p/q/2.jpg", "w[1].tar",
]  # fmt: skip


class Asked:
    """What a store is asked of: paths looked at one by one, and folders listed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        self.folders: list[str] = []
        one, many = pafs.FSSpecHandler.get_file_info, pafs.FSSpecHandler.get_file_info_selector

        def look(handler, paths):
            self.paths += paths
            return one(handler, paths)

        def list_folder(handler, selector):
            self.folders.append(selector.base_dir)
            return many(handler, selector)

        monkeypatch.setattr(pafs.FSSpecHandler, "get_file_info", look)
        monkeypatch.setattr(pafs.FSSpecHandler, "get_file_info_selector", list_folder)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in LAKE:
        memory.pipe(f"/lake/{name}", name.encode())
        put(tmp_path / "lake" / name, name.encode())
    return Asked(monkeypatch)


def units(*inputs: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(unit.name, tuple(unit.members)) for unit in find_units(inputs)]


def test_a_brace_range_is_looked_up_by_listing(asked: Asked) -> None:
    # Each shard of a range cost two requests: 200,000 for {00000..99999}.tar.
    found = units("memory://lake/s/{00000..00039}.tar")
    assert [name for name, _ in found] == [f"{n:05}" for n in range(40)]
    assert len(asked.folders) == 1 and len(asked.paths) == 1


def test_a_range_of_which_many_are_missing_says_how_many(asked: Asked) -> None:
    with pytest.raises(UsageError) as error:
        units("memory://lake/s/{00038..00099}.tar")
    assert str(error.value) == (
        "--input memory://lake/s/00040.tar: no such file or folder, nor are 59 others of its range; "
        "check the path"
    )


def test_a_short_range_is_asked_for_by_its_paths(asked: Asked) -> None:
    # Its folder may hold a million others.
    assert [name for name, _ in units("memory://lake/s/{00001,00000}.tar")] == ["00001", "00000"]
    assert not asked.folders and len(asked.paths) == 3


@pytest.mark.parametrize(
    "pattern",
    ["s/*.tar", "s/0000?.tar", "s/0000[13].tar", "*/00000.tar", "t/**/00001.tar", "t/**", "**/*.jpg",
     "?/*/*.jpg", "[pt]", "s/_*.tar", "t/*.csv", "t/u/*/00001.tar"],
)  # fmt: skip
def test_a_glob_finds_in_a_store_what_it_finds_on_a_disk(
    asked: Asked, tmp_path: Path, pattern: str
) -> None:
    def found(lake: str) -> list | str:
        try:
            return units(f"{lake}/{pattern}")
        except UsageError as error:
            return str(error).rpartition("lake/")[2]

    assert found("memory://lake") == found(f"{tmp_path}/lake")
    assert len(asked.paths) <= 2  # what the input names unexpanded, and what lies above a last `**`


@pytest.mark.parametrize(
    "uri",
    ["s3://key:secret@lake/{0..9}.tar?endpoint_override=localhost:1&scheme=http",
     "s3://key:secret@lake/ä [1].tar?endpoint_override=localhost:1&scheme=http",
     "file:///lake/{0..9}.tar"],
)  # fmt: skip
def test_a_uri_may_hold_braces_and_brackets(uri: str) -> None:
    # It was refused as no URI, where no keys stood in the environment.
    path = uri.partition("?")[0].rpartition("lake/")[2]
    assert locate(uri).path.endswith(f"lake/{path}")


def test_images_named_by_several_inputs_are_in_one_unit_whatever_their_order(
    tmp_path: Path,
) -> None:
    for name in ("a/1.jpg", "a/2.png", "a/b/3.jpg", "a/b/4.png", "a/b/4.txt"):
        put(tmp_path / name, b"x")
    a = tmp_path / "a"
    inputs = [f"{a}", f"{a}/*.jpg", f"{a}/b", f"{a}/b/4.png", f"{a}/b/*"]
    for some in permutations(inputs):
        assert units(*some) == [("a-00000", ("1.jpg", "2.png", "b/3.jpg", "b/4.png"))]
    for some in permutations(inputs[1:]):
        assert sorted(units(*some)) == [("a-00000", ("1.jpg",)), ("b-00000", ("3.jpg", "4.png"))]


def test_loose_files_are_held_in_few_bytes_each(tmp_path: Path) -> None:
    # A million of them took 1.2 GB of the driver.
    for number in range(20_000):
        put(tmp_path / "photos" / f"{number:08}.jpg", b"")
    tracemalloc.start()
    found = find_units([str(tmp_path / "photos")])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(unit.members) for unit in found) == 20_000
    assert peak < 250 * 20_000
