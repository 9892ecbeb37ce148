"""Gather: what `--input` names → files, each once, with what it is.

A folder is walked down and sorted (`walk`, `neighbours`); a file given by itself is read, whatever lies
beside it; what a pattern matches is sorted like a folder, and its wildcards match no hidden name; text tables are read
where they are named outright, by `*.csv` too. A
file that several inputs name is read once, under the name that the outermost of them gives it,
whatever their order. A folder that is there and empty gives nothing.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs
from braceexpand import braceexpand

from llava_batch.errors import UsageError
from llava_batch.read.image_metadata import names_files, strays
from llava_batch.read.kinds import KINDS, LOOSE, kind_of
from llava_batch.read.lake import iceberg
from llava_batch.read.lake.recognise import CATALOG, LANCE
from llava_batch.read.lake.table import Place
from llava_batch.read.neighbours import SIDE_FILE, Neighbours, is_compressed_tar, is_hidden
from llava_batch.read.partitions import (
    LEFT_OUT,
    Partition,
    fits,
    partition_of,
    refuse_unfit,
    table_of,
)
from llava_batch.read.patterns import is_pattern, matches, means_hidden, prefixes
from llava_batch.read.unit_name import unit_name
from llava_batch.read.walk import (
    BROKEN_LINK,
    DEVICE,
    HIDDEN,
    OUTPUT,
    File,
    Table,
    lies_in,
    real_path,
    walk,
)
from llava_batch.storage import Location, locate

METADATA = "image metadata"


@dataclass(frozen=True)
class Found:
    """One file: where it is, what it is, and the folder that its name is counted from."""

    at: Location
    root: Location
    real_root: str
    file: File
    what: str

    @property
    def table(self) -> str:
        """The folder that its name is counted from: `root`, or where that lies in a Hive partition, the
        one above all partitions."""
        return table_of(self.root.path)

    @property
    def name(self) -> str:
        """The path below `table`; of a shard given by itself, the file's name."""
        above = self.root.path[len(self.table) :].strip("/")
        return f"{above}/{self.file.name}" if above else self.file.name

    @property
    def partition(self) -> Partition:
        return partition_of(os.path.dirname(self.at.path))

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def mtime_ns(self) -> int | None:
        return self.file.mtime_ns

    @property
    def is_read(self) -> bool:
        return self.what in KINDS

    @property
    def rank(self) -> tuple[bool, bool, int, bool, str]:
        """The way to a file with the least rank gives it its name; the same in any order of inputs."""
        depth = self.real_root.rstrip("/").count("/")
        spelled = self.root.path != self.real_root
        return not self.is_read, self.file.linked, depth, spelled, self.root.path


class Gathered:
    """The files that the inputs so far have named; `own` is the run's output, and only those in
    `partitions` are read, where any are named."""

    def __init__(self, own: Location | None, partitions: Sequence[str] = ()) -> None:
        self._own = own
        self._wanted = partitions
        self._there: set[Partition] = set()
        self._stores: list[pafs.FileSystem] = []
        self._files: dict[tuple[int, str], Found] = {}
        self._skipped: dict[tuple[int, str], str] = {}
        self._tables: dict[tuple[int, str], tuple[int, Place]] = {}

    @property
    def shards(self) -> list[Found]:
        """Tars and Parquet files, in the order given and by path within each input."""
        return [f for f in self._read() if f.what != LOOSE]

    @property
    def loose(self) -> list[list[Found]]:
        """Image files, by the folder that their names are counted from."""
        folders: dict[tuple[int, str], list[Found]] = defaultdict(list)
        for found in self._read():
            if found.what == LOOSE:
                folders[self._store(found.at.fs), found.table].append(found)
        return list(folders.values())

    @property
    def tables(self) -> list[Place]:
        """Tables of the lake; one that several inputs name has the name that the outermost gives it."""
        return [place for _, place in self._tables.values()]

    @property
    def metadata(self) -> list[Location]:
        """Files that have columns of the images beside and below them."""
        return [f.at for f in self._files.values() if f.what == METADATA]

    def strays(self) -> Counter[str]:
        """How many rows of the images' metadata belong to none of them, by what is wrong."""
        metadata = self.metadata
        images = {f.at.path for f in self._files.values() if f.what == LOOSE and metadata}
        return sum((strays(at, images) for at in metadata), Counter())

    def _read(self) -> Iterator[Found]:
        """What is read, `--partition` among it."""
        wanted = self._wanted
        there = (f for f in self._files.values() if f.is_read)
        return (f for f in there if not wanted or fits(f.partition, wanted))

    def refuse_unfit(self) -> None:
        """Refuse a `--partition` that fits nothing.

        Raises:
            UsageError: no partition that is there, be it empty, is one of those.
        """
        if self._wanted:
            there = {found.partition for found in self._files.values()}
            refuse_unfit(self._there | there, self._wanted)

    @property
    def left_out(self) -> Counter[str]:
        """How many files of each kind are not read, and no rule says why."""
        unread = (f.what for f in self._files.values() if not f.is_read)
        return Counter(what for what in unread if what not in (SIDE_FILE, METADATA))

    @property
    def skipped(self) -> Counter[str]:
        """How many names each rule passed over; a folder counts as one."""
        side_files = [SIDE_FILE for f in self._files.values() if f.what in (SIDE_FILE, METADATA)]
        num_read = len([f for f in self._files.values() if f.is_read])
        left_out = [LEFT_OUT] * (num_read - len([*self._read()]))
        return Counter([*self._skipped.values(), *side_files, *left_out])

    def take(self, text: str) -> None:
        """Add what one `--input` names.

        Raises:
            UsageError: it is not there, lies in the output, is a file of no known kind, or holds
                files and none that is read.
        """
        if text.startswith(CATALOG):
            self._tables[-1, text] = 0, iceberg.place_in_catalog(text)
            return
        tables_before = len(self._tables)
        named = list(self._named(text))
        for found in named:
            key = (self._store(found.at.fs), found.file.real)
            held = self._files.get(key)
            if held is None or found.rank < held.rank:
                self._files[key] = found
        has_table = len(self._tables) > tables_before
        if named and not has_table and not any(found.is_read for found in named):
            kinds = Counter(found.what for found in named).most_common(3)
            there = ", ".join(f"{number} {kind}" for kind, number in kinds)
            raise UsageError(
                f"--input {locate(text).shown}: no image, tar or Parquet file there, but {there}; "
                "check the path (CSV and JSONL tables are read where they are named themselves)"
            )

    def _named(self, text: str) -> Iterator[Found]:
        """The files of one `--input`, its braces and wildcards expanded."""
        whole = locate(text)
        if whole.info().type != pafs.FileType.NotFound:
            yield from self._given(whole)
            return
        for part in braceexpand(text):
            at = locate(part)
            if is_pattern(at.path):
                yield from self._matched(at)
            else:
                yield from self._given(at)

    def _given(self, at: Location) -> Iterator[Found]:
        """A folder's files, or the one file, that is named outright."""
        info = at.info()
        if info.type == pafs.FileType.NotFound:
            raise UsageError(f"--input {at.shown}: {_not_there(at)}")
        if self._is_own(at):
            assert self._own is not None
            raise UsageError(
                f"--input {at.shown}: lies in --output {self._own.shown}, where readers would take it "
                "for answers; give another --output"
            )
        if info.type == pafs.FileType.Directory:
            yield from self._below(at)
            return
        _refuse_compressed(at)
        what = kind_of(at.path)
        if what is None:
            raise UsageError(
                f"--input {at.shown}: not a kind of file that is read; "
                "give a .tar, a .parquet, a .csv, a .jsonl, an image, or a folder"
            )
        yield _alone(at, info, what)

    def _below(self, folder: Location) -> Iterator[Found]:
        listing = walk(folder, self._own)
        self._skip(folder.fs, listing.skipped)
        self._there |= {partition_of(f"{folder.path}/{name}") for name in ("", *listing.folders)}
        real_root = real_path(folder)
        for table in listing.tables:
            self._take_table(folder, real_root, table)
        neighbours = Neighbours((f.name for f in listing.files if not f.odd), listing.folders)
        for file in listing.files:
            at = folder.child(file.name)
            _refuse_compressed(at)
            what = file.odd or _what(neighbours, file.name, at)
            yield Found(at, folder, real_root, file, what)

    def _take_table(self, folder: Location, real_root: str, table: Table) -> None:
        at = folder.child(table.name) if table.name else folder
        name = (table.name or real_root.rstrip("/").rpartition("/")[2]).removesuffix(f".{LANCE}")
        key = (self._store(folder.fs), table.real)
        depth = real_root.rstrip("/").count("/")
        if key not in self._tables or depth < self._tables[key][0]:
            place = Place(kind=table.kind, at=at, name=unit_name(name) or "root")
            self._tables[key] = depth, place

    def _matched(self, pattern: Location) -> Iterator[Found]:
        """What a pattern matches: folders are walked, files sorted among each other."""
        paths = matches(pattern)
        if not paths:
            raise UsageError(f"--input {pattern.shown}: nothing there fits; check the path")
        infos = [i for i in pattern.fs.get_file_info(paths) if self._is_wanted(i.path, pattern)]
        folders = [i.path for i in infos if i.type == pafs.FileType.Directory]
        for path in folders:
            yield from self._below(Location(pattern.fs, path, path))
        neighbours = Neighbours((i.path for i in infos if i.is_file), folders)
        for info in infos:
            at = Location(pattern.fs, info.path, info.path)
            if info.is_file:
                _refuse_compressed(at)
                yield _alone(at, info, _named_by(pattern.path) or _what(neighbours, info.path, at))
            elif info.type != pafs.FileType.Directory:
                odd = BROKEN_LINK if info.type == pafs.FileType.NotFound else DEVICE
                yield _alone(at, info, odd)

    def _is_wanted(self, path: str, pattern: Location) -> bool:
        """Whether no rule passes over what a pattern matched."""
        meant = means_hidden(pattern.path)
        for prefix in prefixes(path, pattern.path):
            folder, _, name = prefix.rpartition("/")
            skip_hidden = is_hidden(name) and not meant
            if skip_hidden or self._is_own(Location(pattern.fs, prefix, prefix)):
                real = f"{real_path(Location(pattern.fs, folder, folder))}/{name}"
                self._skip(pattern.fs, {real: HIDDEN if skip_hidden else OUTPUT})
                return False
        return True

    def _is_own(self, at: Location) -> bool:
        own = self._own
        return own is not None and own.fs == at.fs and lies_in(real_path(at), real_path(own))

    def _skip(self, fs: pafs.FileSystem, skipped: dict[str, str]) -> None:
        store = self._store(fs)
        self._skipped |= {(store, path): rule for path, rule in skipped.items()}

    def _store(self, fs: pafs.FileSystem) -> int:
        """A number for the store that files lie in, the same for equal ones."""
        if fs not in self._stores:
            self._stores.append(fs)
        return self._stores.index(fs)


def _what(neighbours: Neighbours, name: str, at: Location) -> str:
    """What a file is by its name; of one that is called as image metadata, by its columns."""
    is_metadata = neighbours.may_be_metadata(name) and names_files(at)
    return METADATA if is_metadata else neighbours.what(name)


def _alone(at: Location, info: pafs.FileInfo, what: str) -> Found:
    """A file that is named by itself: its name is counted from its own folder."""
    folder, _, name = at.path.rpartition("/")
    root = Location(at.fs, folder, folder)
    real_root = real_path(root)
    file = File(name, f"{real_root}/{name}", info.size or 0, info.mtime_ns)
    return Found(at, root, real_root, file, what)


def _named_by(pattern: str) -> str | None:
    """The kind that a pattern names by its end, of those that are read only where they are named."""
    kind = kind_of(pattern)
    return kind if kind is not None and KINDS[kind].only_named else None


def _refuse_compressed(at: Location) -> None:
    """Refuse what holds images and cannot be read, rather than leave it out."""
    if is_compressed_tar(at.path):
        raise UsageError(
            f"--input {at.shown}: compressed tars are not read; decompress it "
            "(the images in it are compressed already)"
        )


def _not_there(at: Location) -> str:
    """What is said of an input that is not found; of a web host, any failure looks like that."""
    if at.shown.startswith(("http://", "https://")):
        return ("no such file, or its host does not answer; check the URI, or give s3://, gs://, az://, a "
                "path, or a table of images' URLs with --allow-http")  # fmt: skip
    return "no such file or folder; check the path"
