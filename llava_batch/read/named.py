"""Named: what one `--input` names → its files, each as what it is.

A folder is walked down and sorted (`walk`, `neighbours`); a file given by itself is read, whatever lies
beside it; what a pattern matches is sorted like a folder, and its wildcards match no hidden name; text tables are read
where they are named outright, by `*.csv` too. Wildcards and brace ranges in a store cost listings of its
folders, not a request for each file.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain

import pyarrow.fs as pafs

from llava_batch.errors import UsageError
from llava_batch.read.braces import expanded
from llava_batch.read.found import Bunch, Found, Way
from llava_batch.read.image_metadata import names_files
from llava_batch.read.image_names import is_video
from llava_batch.read.kinds import KINDS, LOOSE, kind_of
from llava_batch.read.lake.recognise import LANCE
from llava_batch.read.lake.table import Place
from llava_batch.read.neighbours import Neighbours, is_compressed_tar, is_hidden
from llava_batch.read.partitions import Partition, partition_of
from llava_batch.read.patterns import is_pattern, matches, means_hidden, prefixes
from llava_batch.read.unit_name import unit_name
from llava_batch.read.walk import (
    BROKEN_LINK,
    DEVICE,
    HIDDEN,
    OUTPUT,
    Files,
    Table,
    lies_in,
    real_path,
    walk,
)
from llava_batch.storage import Location, locate

METADATA = "image metadata"


class Named:
    """What inputs led to beside their files; `own` is the run's output."""

    def __init__(self, own: Location | None) -> None:
        self._own = own
        self._stores: list[pafs.FileSystem] = []
        self.partitions: set[Partition] = set()
        """Those of the folders that are there, be they empty."""
        self.skipped: dict[tuple[int, str], str] = {}
        """The rule by what it passed over."""
        self.tables: dict[tuple[int, str], tuple[int, Place]] = {}
        """Tables of the lake, by where they are: how deep the input that names it lies, and the table."""

    def files(self, text: str) -> Iterator[Found | Bunch]:
        """The files of one `--input`, its braces and wildcards expanded.

        Raises:
            UsageError: it is not there, lies in the output, or is a file of no known kind.
        """
        whole = locate(text)
        info = whole.info()
        if info.type != pafs.FileType.NotFound:
            yield from self._given(whole, info)
            return
        for part, part_info in expanded(text, whole):
            if is_pattern(part.path):
                yield from self._matched(part)
            else:
                yield from self._given(part, part_info or part.info())

    def store(self, fs: pafs.FileSystem) -> int:
        """A number for the store that files lie in, the same for equal ones."""
        if fs not in self._stores:
            self._stores.append(fs)
        return self._stores.index(fs)

    def _given(self, at: Location, info: pafs.FileInfo) -> Iterator[Found | Bunch]:
        """A folder's files, or the one file, that is named outright."""
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
            video = " (a video: give frames of it, as images)" if is_video(at.path) else ""
            raise UsageError(
                f"--input {at.shown}: not a kind of file that is read{video}; "
                "give a .tar, a .parquet, a .csv, a .jsonl, an image, or a folder"
            )
        yield _alone(at, info, what)

    def _below(self, folder: Location) -> Iterator[Found | Bunch]:
        listing = walk(folder, self._own)
        self._skip(folder.fs, listing.skipped)
        folders = ("", *listing.folders)
        self.partitions |= {partition_of(f"{folder.path}/{name}") for name in folders}
        way = Way(folder, real_path(folder))
        for table in listing.tables:
            self._take_table(way, table)
        regular = ((files.below, _regular(files)) for files in listing.files)
        neighbours = Neighbours(regular, listing.folders)
        sorted_out = (
            _sorted_out(neighbours, files.below, files, _in(folder, files.below), way)
            for files in listing.files
        )
        yield from _shards_last(chain.from_iterable(sorted_out))

    def _take_table(self, way: Way, table: Table) -> None:
        at = way.root.child(table.name) if table.name else way.root
        name = (table.name or way.real_root.rstrip("/").rpartition("/")[2]).removesuffix(
            f".{LANCE}"
        )
        key = (self.store(way.root.fs), table.real)
        depth = way.real_root.rstrip("/").count("/")
        if key not in self.tables or depth < self.tables[key][0]:
            place = Place(kind=table.kind, at=at, name=unit_name(name) or "root")
            self.tables[key] = depth, place

    def _matched(self, pattern: Location) -> Iterator[Found | Bunch]:
        """What a pattern matches: folders are walked, files sorted among each other."""
        found = matches(pattern)
        if not found:
            raise UsageError(f"--input {pattern.shown}: nothing there fits; check the path")
        infos = [info for info in found if self._is_wanted(info.path, pattern)]
        folders = [i.path for i in infos if i.type == pafs.FileType.Directory]
        for path in folders:
            yield from self._below(Location(pattern.fs, path, path))
        beside: dict[str, Files] = defaultdict(lambda: Files("", ""))
        for info in infos:
            if info.type != pafs.FileType.Directory:
                folder, _, name = info.path.rpartition("/")
                beside[folder].add(name, info.size or 0, info.mtime_ns)
                if not info.is_file:
                    is_broken = info.type == pafs.FileType.NotFound
                    beside[folder].odd[name] = BROKEN_LINK if is_broken else DEVICE
        neighbours = Neighbours(((f, _regular(files)) for f, files in beside.items()), folders)
        sorted_out = []
        for folder, files in beside.items():
            root = Location(pattern.fs, folder, folder)
            way = Way(root, real_path(root))
            files.real, named = way.real_root, _named_by(pattern.path)
            sorted_out.append(_sorted_out(neighbours, folder, files.in_order(), root, way, named))
        yield from _shards_last(chain.from_iterable(sorted_out))

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
        store = self.store(fs)
        self.skipped |= {(store, path): rule for path, rule in skipped.items()}


def _regular(files: Files) -> list[str]:
    """The names of what is a file indeed."""
    return [n for n in files.names if n not in files.odd] if files.odd else files.names


def _sorted_out(
    neighbours: Neighbours,
    folder: str,
    files: Files,
    at: Location,
    way: Way,
    named: str | None = None,
) -> Iterator[Found | Bunch]:
    """One folder's files as what they are, `named` where a pattern says it; `folder` is what `neighbours`
    knows it by."""
    for name in files.names:
        if is_compressed_tar(name):
            _refuse_compressed(at.child(name))
    kinds = neighbours.kinds(folder, _regular(files))
    places: dict[str, array[int]] = defaultdict(lambda: array("q"))
    for place, name in enumerate(files.names):
        what = files.odd.get(name) or next(kinds)
        if name not in files.odd:
            is_metadata = neighbours.may_be_metadata(folder, name) and not named
            if is_metadata and names_files(at.child(name)):
                what = METADATA
            what = named or what
        places[what].append(place)
    for what, those in places.items():
        bunch = Bunch(at, way, what, files.those(those))
        if bunch.is_read and what != LOOSE:
            yield from bunch.shards()
        else:
            yield bunch


def _in(folder: Location, below: str) -> Location:
    return folder.child(below) if below else folder


def _shards_last(found: Iterable[Found | Bunch]) -> Iterator[Found | Bunch]:
    """The same, shards by path behind all others."""
    shards = []
    for one in found:
        if isinstance(one, Found):
            shards.append(one)
        else:
            yield one
    yield from sorted(shards, key=lambda shard: shard.at.path)


def _alone(at: Location, info: pafs.FileInfo, what: str) -> Found | Bunch:
    """A file that is named by itself: its name is counted from its own folder."""
    folder, _, name = at.path.rpartition("/")
    root = Location(at.fs, folder, folder)
    way = Way(root, real_path(root))
    if what != LOOSE:
        return Found(
            at=at,
            way=way,
            what=what,
            real=f"{way.real_root}/{name}",
            size=info.size or 0,
            mtime_ns=info.mtime_ns,
            linked=False,
        )
    files = Files("", way.real_root)
    files.add(name, info.size or 0, info.mtime_ns)
    return Bunch(root, way, what, files)


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
