"""Found: files as an input led to them, with the folder that their names are counted from.

A shard is a `Found` of its own. All other files are a `Bunch`: those of one kind in one folder, by
columns, since there may be millions of images.
"""

import os
from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from llava_batch.read.kinds import KINDS
from llava_batch.read.partitions import Partition, partition_of, table_of
from llava_batch.read.walk import Files
from llava_batch.storage import Location
from llava_batch.unit import Stamp

Rank = tuple[bool, bool, int, bool, str]


@dataclass(frozen=True)
class Way:
    """How an input led to files: the folder that it named, or that of the file that it named."""

    root: Location
    real_root: str

    @property
    def table(self) -> str:
        """The folder that names are counted from: `root`, or where that lies in a Hive partition, the
        one above all partitions."""
        return table_of(self.root.path)

    def rank(self, what: str, *, linked: bool) -> Rank:
        """The way to a file with the least rank gives it its name; the same in any order of inputs."""
        depth = self.real_root.rstrip("/").count("/")
        spelled = self.root.path != self.real_root
        return what not in KINDS, linked, depth, spelled, self.root.path


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One shard: where it is, what it is, and the way to it."""

    at: Location
    way: Way
    what: str
    real: str
    """Its path without linked folders."""
    size: int
    mtime_ns: int | None
    linked: bool

    @property
    def name(self) -> str:
        """The path below the way's table; of a shard given by itself, the file's name."""
        return self.at.path[len(self.way.table) :].strip("/")

    @property
    def partition(self) -> Partition:
        return partition_of(os.path.dirname(self.at.path))

    @property
    def rank(self) -> Rank:
        return self.way.rank(self.what, linked=self.linked)


@dataclass(frozen=True)
class Bunch:
    """Files of one kind in the folder `at`; their names are sorted."""

    at: Location
    way: Way
    what: str
    files: Files

    @property
    def is_read(self) -> bool:
        return self.what in KINDS

    @property
    def partition(self) -> Partition:
        return partition_of(self.at.path)

    @property
    def rank(self) -> Rank:
        return self.way.rank(self.what, linked=self.files.linked)

    @property
    def names(self) -> list[str]:
        return self.files.names

    def path(self, name: str) -> str:
        return f"{self.at.path.rstrip('/')}/{name}"

    def stamp(self, place: int) -> Stamp:
        return self.files.sizes[place], self.files.mtime_ns(place)

    def place(self, name: str) -> int | None:
        """The place of a name in `names`."""
        place = bisect_left(self.names, name)
        return place if place < len(self.names) and self.names[place] == name else None

    def without(self, names: Collection[str]) -> "Bunch":
        there = [place for place, name in enumerate(self.names) if name not in names]
        return replace(self, files=self.files.those(there))

    def shards(self) -> Iterator[Found]:
        """Each file by itself."""
        for place, name in enumerate(self.names):
            size, mtime_ns = self.stamp(place)
            at = self.at.child(name)
            yield Found(
                at=at,
                way=self.way,
                what=self.what,
                real=f"{self.files.real.rstrip('/')}/{name}",
                size=size,
                mtime_ns=mtime_ns,
                linked=self.files.linked,
            )


def resolved(held: list[Bunch], new: Bunch) -> list[Bunch]:
    """Bunches of one folder, and one more: a file in several stays where its rank is the least."""
    kept = []
    for bunch in held:
        both = set(bunch.names).intersection(new.names)
        if both and new.rank < bunch.rank:
            bunch = bunch.without(both)
        elif both:
            new = new.without(both)
        if bunch.names:
            kept.append(bunch)
    return [*kept, new] if new.names else kept
