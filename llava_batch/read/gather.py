"""Gather: all that `--input` names → files, each once, with what it is.

What one input names, `named` says. A file that several inputs name is read once, under the name that the
outermost of them gives it, whatever their order. A folder that is there and empty gives nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from llava_batch.errors import UsageError
from llava_batch.read.found import Bunch, Found, resolved
from llava_batch.read.image_metadata import strays
from llava_batch.read.image_names import is_video
from llava_batch.read.kinds import LOOSE
from llava_batch.read.lake import iceberg
from llava_batch.read.lake.recognise import CATALOG
from llava_batch.read.lake.table import Place
from llava_batch.read.named import METADATA, Named
from llava_batch.read.neighbours import SIDE_FILE
from llava_batch.read.partitions import LEFT_OUT, fits, refuse_unfit
from llava_batch.storage import Location, locate

Key = tuple[int, str]
"""A store, and a path without links in it."""


class Gathered:
    """The files that the inputs so far have named; `own` is the run's output, and only those in
    `partitions` are read, where any are named."""

    def __init__(self, own: Location | None, partitions: Sequence[str] = ()) -> None:
        self._wanted = partitions
        self._named = Named(own)
        self._shards: dict[Key, Found] = {}
        self._bunches: dict[Key, list[Bunch]] = {}

    def hand_over(self) -> list[Found]:
        """Tars and Parquet files, in the order given and by path within each input. They are known here no more:
        whoever has made units of them lets them go."""
        held, self._shards = self._shards, {}
        return [found for found in held.values() if self._fits(found)]

    @property
    def loose(self) -> list[list[Bunch]]:
        """Image files, by the folder that their names are counted from."""
        tables: dict[Key, list[Bunch]] = defaultdict(list)
        for (store, _), bunches in self._bunches.items():
            for bunch in bunches:
                if bunch.what == LOOSE and self._fits(bunch):
                    tables[store, bunch.way.table].append(bunch)
        return [*tables.values()]

    @property
    def tables(self) -> list[Place]:
        """Tables of the lake; one that several inputs name has the name that the outermost gives it."""
        return [place for _, place in self._named.tables.values()]

    @property
    def metadata(self) -> list[Location]:
        """Files that have columns of the images beside and below them."""
        return [b.at.child(n) for b, names in self._unread() if b.what == METADATA for n in names]

    def strays(self) -> Counter[str]:
        """How many rows of the images' metadata belong to none of them, by what is wrong."""
        metadata = self.metadata
        if not metadata:
            return Counter()
        images = {b.path(n) for b in self._all() if b.what == LOOSE for n in b.names}
        return sum((strays(at, images) for at in metadata), Counter())

    def refuse_unfit(self) -> None:
        """Refuse a `--partition` that fits nothing.

        Raises:
            UsageError: no partition that is there, be it empty, is one of those.
        """
        if self._wanted:
            shards = {found.partition for found in self._shards.values()}
            bunches = {bunch.partition for bunch in self._all()}
            refuse_unfit(self._named.partitions | shards | bunches, self._wanted)

    @property
    def left_out(self) -> Counter[str]:
        """How many files of each kind are not read, and no rule says why."""
        counts: Counter[str] = Counter()
        for bunch, names in self._unread():
            if bunch.what not in (SIDE_FILE, METADATA):
                counts[bunch.what] += len(names)
        return counts

    @property
    def skipped(self) -> Counter[str]:
        """How many names each rule passed over; a folder counts as one."""
        counts = Counter(self._named.skipped.values())
        for bunch, names in self._unread():
            if bunch.what in (SIDE_FILE, METADATA):
                counts[SIDE_FILE] += len(names)
        unfit = len([f for f in self._shards.values() if not self._fits(f)])
        unfit += sum(len(b.names) for b in self._all() if b.is_read and not self._fits(b))
        counts[LEFT_OUT] += unfit
        return +counts

    def take(self, text: str) -> None:
        """Add what one `--input` names.

        Raises:
            UsageError: as `Named.files` says; or it holds files and none that is read.
        """
        if text.startswith(CATALOG):
            self._named.tables[-1, text] = 0, iceberg.place_in_catalog(text)
            return
        tables_before = len(self._named.tables)
        counts: Counter[str] = Counter()
        is_read = False
        for found in self._named.files(text):
            if isinstance(found, Bunch):
                counts[found.what] += len(found.names)
                is_read |= found.is_read
                self._add_bunch(found)
            else:
                counts[found.what] += 1
                is_read = True
                self._add_shard(found)
        has_table = len(self._named.tables) > tables_before
        if counts and not has_table and not is_read:
            there = ", ".join(f"{number} {kind}" for kind, number in counts.most_common(3))
            frames = " (videos are not taken, frames of them as images are)" * any(
                map(is_video, counts)
            )
            raise UsageError(
                f"--input {locate(text).shown}: no image, tar or Parquet file there, but {there}{frames}; "
                "check the path (CSV and JSONL tables are read where they are named themselves)"
            )

    def _add_shard(self, found: Found) -> None:
        key = (self._named.store(found.at.fs), found.real)
        held = self._shards.get(key)
        if held is None or found.rank < held.rank:
            self._shards[key] = found

    def _add_bunch(self, bunch: Bunch) -> None:
        key = (self._named.store(bunch.at.fs), bunch.files.real)
        self._bunches[key] = resolved(self._bunches.get(key, []), bunch)

    def _all(self) -> list[Bunch]:
        return [bunch for bunches in self._bunches.values() for bunch in bunches]

    def _unread(self) -> list[tuple[Bunch, list[str]]]:
        """Files that are not read, but those that another input names as shards."""
        shards: dict[Key, set[str]] = defaultdict(set)
        for store, path in self._shards:
            folder, _, name = path.rpartition("/")
            shards[store, folder].add(name)
        return [
            (bunch, [n for n in bunch.names if n not in shards.get(key, ())])
            for key, bunches in self._bunches.items()
            for bunch in bunches
            if not bunch.is_read
        ]

    def _fits(self, found: Found | Bunch) -> bool:
        """Whether it is in one of the partitions that are to be read."""
        return not self._wanted or fits(found.partition, self._wanted)
