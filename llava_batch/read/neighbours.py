"""Neighbours: what a file is by its name and what lies beside it: of a kind that is read, a side file,
or left out.

A side file is read with what it stands beside, or written there by the tool that made it:
- `x.json`, `x.txt` beside an image `x.*` (WebDataset's and img2dataset's columns);
- `x_stats.json` beside a shard or folder `x` (img2dataset's figures of it);
- `state.json`, `dataset_info.json` beside the Arrow files of a dataset that Hugging Face's `save_to_disk`
  wrote, `dataset_dict.json` above them;
- `x.parquet` beside a tar or folder `x`, exactly where `x_stats.json` stands (img2dataset's table).
Knows names only; opens nothing.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property

from llava_batch.read.image_metadata import NAMES as METADATA_NAMES
from llava_batch.read.kinds import KINDS, LOOSE, kind_of

SIDE_FILE = "side files"

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_STATS = "_stats.json"
_SIDE = (".json", ".txt")
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_OF_DATASET = (_STATE, "dataset_info.json")
_DATA = re.compile(r"(data-\d+-of-\d+|dataset)\.arrow")
_TABLES = KINDS["parquet"].extensions
_USUAL = re.compile(r"\.[a-z][a-z0-9+_-]{0,11}")
"""An extension; what stands behind the last dot of a title or a date is none."""


def is_compressed_tar(name: str) -> bool:
    """Whether it holds images that cannot be read as it is."""
    return name.lower().endswith(_COMPRESSED)


def is_hidden(part: str) -> bool:
    """Whether one part of a path is skipped, as everywhere in the lake."""
    return part.startswith(("_", "."))


class Neighbours:
    """What stands in the folders that were found together: `files` has each folder with the names in it,
    `folders` are those that stand among them."""

    def __init__(self, files: Iterable[tuple[str, Iterable[str]]], folders: Iterable[str]) -> None:
        self._folders = set(folders)
        self._above_images: set[str] = set()
        self._datasets: set[str] = set()
        for folder, names in files:
            if any(kind_of(name) == LOOSE for name in names):
                self._above_images.update(_above(folder))
            if _is_dataset(names):
                self._datasets.add(folder)
        self._above_datasets = {os.path.dirname(dataset) for dataset in self._datasets}

    def may_be_metadata(self, folder: str, name: str) -> bool:
        """Whether it is called as Hugging Face's metadata of the images in its folder and below."""
        return name in METADATA_NAMES and folder in self._above_images

    def kinds(self, folder: str, names: Collection[str]) -> Iterator[str]:
        """What each of the files of one folder is: a kind's name, `SIDE_FILE`, or as what it is left
        out: `.csv`."""
        stems = _Stems(names)
        for name in names:
            if self._is_side_file(folder, name, stems):
                yield SIDE_FILE
                continue
            kind = kind_of(name)
            is_left_out = kind is not None and KINDS[kind].only_named
            if kind is None or (is_left_out and not self._is_of_dataset(folder, name)):
                yield left_out_as(name)
            else:
                yield kind

    def _is_side_file(self, folder: str, name: str, beside: "_Stems") -> bool:
        stem, extension = os.path.splitext(name)
        if extension in _SIDE and stem in beside.images:
            return True
        if name.endswith(_STATS):
            of = name.removesuffix(_STATS)
            return of in beside.shards or self._is_folder(folder, of)
        if name in _OF_DATASET:
            return folder in self._datasets
        if name == _SPLITS:
            return folder in self._above_datasets
        if extension.lower() not in _TABLES or stem + _STATS not in beside.names:
            return False
        return stem in beside.tars or self._is_folder(folder, stem)

    def _is_of_dataset(self, folder: str, name: str) -> bool:
        """Whether it is a file of a dataset on disk, and none that `datasets` keeps beside it."""
        return folder in self._datasets and _DATA.fullmatch(name) is not None

    def _is_folder(self, folder: str, name: str) -> bool:
        return (f"{folder}/{name}" if folder else name) in self._folders


class _Stems:
    """The names of one folder's files, and of some kinds of them the stems; made where they are asked for."""

    def __init__(self, names: Collection[str]) -> None:
        self._all = names

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self._all)

    @cached_property
    def images(self) -> frozenset[str]:
        return self._of(LOOSE)

    @cached_property
    def tars(self) -> frozenset[str]:
        return self._of("tar")

    @cached_property
    def shards(self) -> frozenset[str]:
        return self.tars | self._of("parquet")

    def _of(self, kind: str) -> frozenset[str]:
        return frozenset(os.path.splitext(n)[0] for n in self._all if kind_of(n) == kind)


def _is_dataset(names: Iterable[str]) -> bool:
    """Whether a folder with these files is a dataset on disk."""
    there = [name for name in names if name == _STATE or _DATA.fullmatch(name)]
    return _STATE in there and len(there) > 1


def _above(folder: str) -> Iterator[str]:
    """A folder and those that it lies in."""
    yield folder
    while folder:
        folder = folder.rpartition("/")[0]
        yield folder


def left_out_as(name: str) -> str:
    """The kind that a file which is not read counts under."""
    extension = os.path.splitext(name)[1].lower()
    if not extension:
        return "without extension"
    return extension if _USUAL.fullmatch(extension) else "of other names"
