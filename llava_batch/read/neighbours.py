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
from collections.abc import Iterable, Iterator

from llava_batch.read.image_metadata import NAMES as METADATA_NAMES
from llava_batch.read.kinds import KINDS, LOOSE, kind_of

SIDE_FILE = "side files"

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_STATS = "_stats.json"
_SIDE = (".json", ".txt")
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_OF_DATASET = (_STATE, "dataset_info.json")
_DATA = re.compile(r"(data-\d+-of-\d+|dataset)\.arrow")
_USUAL = re.compile(r"\.[a-z][a-z0-9+_-]{0,11}")
"""An extension; what stands behind the last dot of a title or a date is none."""


def is_compressed_tar(name: str) -> bool:
    """Whether it holds images that cannot be read as it is."""
    return name.lower().endswith(_COMPRESSED)


def is_hidden(part: str) -> bool:
    """Whether one part of a path is skipped, as everywhere in the lake."""
    return part.startswith(("_", "."))


class Neighbours:
    """Sorts the files that were found together; `folders` are those that stand among them."""

    def __init__(self, names: Iterable[str], folders: Iterable[str]) -> None:
        self._names = set(names)
        self._folders = set(folders)
        stems: dict[str | None, set[str]] = {}
        for name in self._names:
            stems.setdefault(kind_of(name), set()).add(os.path.splitext(name)[0])
        self._images = stems.get(LOOSE, set())
        self._above_images = {
            above
            for folder in {os.path.dirname(i) for i in self._images}
            for above in _above(folder)
        }
        self._tars = stems.get("tar", set())
        self._shards = self._tars | stems.get("parquet", set())
        self._on_disk = {name for name in self._names if self._is_of_dataset(name)}
        self._datasets = {os.path.dirname(name) for name in self._on_disk}

    def may_be_metadata(self, name: str) -> bool:
        """Whether it is called as Hugging Face's metadata of the images in its folder and below."""
        folder, _, last = name.rpartition("/")
        return last in METADATA_NAMES and folder in self._above_images

    def what(self, name: str) -> str:
        """A kind's name, `SIDE_FILE`, or as what it is left out: `.csv`."""
        if self._is_side_file(name):
            return SIDE_FILE
        kind = kind_of(name)
        if kind is None or (KINDS[kind].only_named and name not in self._on_disk):
            return left_out_as(name)
        return kind

    def _is_side_file(self, name: str) -> bool:
        stem, extension = os.path.splitext(name)
        if extension in _SIDE and stem in self._images:
            return True
        if name.endswith(_STATS):
            of = name.removesuffix(_STATS)
            return of in self._shards or of in self._folders
        folder, _, last = name.rpartition("/")
        if last in _OF_DATASET:
            return folder in self._datasets
        if last == _SPLITS:
            return any(os.path.dirname(dataset) == folder for dataset in self._datasets)
        beside = stem in self._tars or stem in self._folders
        return beside and kind_of(name) == "parquet" and stem + _STATS in self._names

    def _is_of_dataset(self, name: str) -> bool:
        """Whether it is a file of a dataset on disk, and none that `datasets` keeps beside it."""
        folder, _, last = name.rpartition("/")
        state = f"{folder}/{_STATE}" if folder else _STATE
        return _DATA.fullmatch(last) is not None and state in self._names


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
