"""A tar's members, in order → rows: which side file is which image's, and what a row's key is.

A side file belongs to the image whose stem (its name without extension) its own name begins with, the
longest where there are several: `x.meta.json` to `x.jpg`, `x.v2.json` to `x.v2.jpg` if that is there.
Images of one stem share theirs. One that begins with no image's stem is shared by the images whose
stem begins with its own: `x.json` by `x.left.jpg` and `x.right.jpg`.

A row's key is WebDataset's (the path up to the first dot of its last part) where no row before has
it, else the member's name; a name that comes again is marked `%dup2`, `%dup3` …

A run is members in a row that share WebDataset's key. In a well-formed tar there is one run for each
key, and within a run any order will do, as far as HELD_IMAGES and HELD_BYTES reach: of a longer run
(dated names have one key in all the tar) the oldest images are let go, and a side file that comes
later than that is lost. In other tars a side file that comes before its image is found at any
distance (the last WAITING_BYTES of them); one that comes after its image's run is lost. A name that
comes twice in a run begins a new one. Every image is a row in any case; a key that has side files
and no image is an `image_missing` row, at the end.
"""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llava_batch.errors import RowError
from llava_batch.read.row import Keys, Row, missing

HELD_IMAGES = 256
HELD_BYTES = 128 * 2**20
"""Of one run: images held back, with their side files, for what may come; one at least."""

WAITING_BYTES = 64 * 2**20
WAITING_FILES = 1000
"""Side files without an image: bytes of all of them, and how many of one key."""

Content = bytes | tuple[RowError, str]
"""An image's bytes, or what keeps it from being read."""


@dataclass(frozen=True, kw_only=True)
class ImageMember:
    """A member that is a row; `stem` is its name without the extension."""

    name: str
    stem: str
    content: Content


@dataclass(frozen=True, kw_only=True)
class SideMember:
    """A member beside images; `data` is None where it gives no column: too large, a link, a mask."""

    name: str
    data: bytes | None


class Samples:
    """Takes a tar's members one by one and gives its rows, in the order of their images."""

    def __init__(self, why_missing: str) -> None:
        self._why_missing = why_missing
        self._keys = Keys()
        self._key = ""
        self._run = _Run()
        self._waiting = _Waiting()
        self._without_image: dict[str, None] = {}

    def add(self, member: ImageMember | SideMember) -> Iterator[Row]:
        """The rows that are settled now that `member` has come."""
        key = webdataset_key(member.name)
        if key != self._key or member.name in self._run.names:
            yield from self._let_go(0, 0)
            self._key = key
        if isinstance(member, ImageMember):
            self._run.add(_Held(member, self._waiting.take(key, f"{member.stem}.")))
        elif not self._run.give(member.name, member.data):
            if key not in self._keys:
                self._without_image[key] = None
            if member.data is not None:
                self._waiting.put(key, member.name, member.data)
        yield from self._let_go(HELD_IMAGES, HELD_BYTES)

    def end(self) -> Iterator[Row]:
        """The rows that are left when the last member has come."""
        yield from self._let_go(0, 0)
        for key in self._without_image:
            if key not in self._keys:
                side = {n[len(key) + 1 :]: data for n, data in self._waiting.of(key).items()}
                yield missing(key, self._why_missing, columns_of(side))

    def _let_go(self, most_images: int, most_bytes: int) -> Iterator[Row]:
        """Rows of the run's oldest images, until no more are held than that."""
        while self._run.is_over(most_images, most_bytes):
            held = self._run.pop()
            key = held.image.name if self._key in self._keys else self._key
            columns = columns_of(held.side_by_extension(self._waiting.of(self._key)))
            yield row_of(key, self._keys.mark(key), columns, held.image.content)


@dataclass
class _Held:
    """An image, and by name the side files that are its so far."""

    image: ImageMember
    side: dict[str, bytes]

    def owns(self, name: str) -> bool:
        return name.startswith(f"{self.image.stem}.")

    @property
    def num_bytes(self) -> int:
        content = self.image.content
        own = len(content) if isinstance(content, bytes) else 0
        return own + sum(map(len, self.side.values()))

    def side_by_extension(self, waiting: dict[str, bytes]) -> dict[str, bytes]:
        """Its own side files, and those of `waiting` that it shares."""
        stem = self.image.stem
        shared = [n for n in waiting if stem.startswith(f"{n.rpartition('.')[0]}.")]
        found = {n.rpartition(".")[2]: waiting[n] for n in sorted(shared, key=len)}
        return found | {name[len(stem) + 1 :]: data for name, data in self.side.items()}


class _Run:
    """The images of the run being read that are held back, oldest first."""

    def __init__(self) -> None:
        self._held: deque[_Held] = deque()
        self._num_bytes = 0
        self.names: set[str] = set()

    def is_over(self, most_images: int, most_bytes: int) -> bool:
        """Whether more is held than that; one image, however large, is more than no images only."""
        many = len(self._held) > most_images
        return many or (len(self._held) > 1 and self._num_bytes > most_bytes)

    def add(self, new: _Held) -> None:
        """Hold an image; side files that its stem has the better claim to become its."""
        for held in self._held:
            if held.image.stem == new.image.stem:
                new.side |= held.side
            elif held.owns(new.image.stem):
                for name in [*filter(new.owns, held.side)]:
                    new.side[name] = held.side.pop(name)
                    self._num_bytes -= len(new.side[name])
        self._held.append(new)
        self._num_bytes += new.num_bytes
        self.names |= {new.image.name, *new.side}

    def give(self, name: str, data: bytes | None) -> bool:
        """Give a side file to its images; whether there are any."""
        owners = [held for held in self._held if held.owns(name)]
        longest = max((held.image.stem for held in owners), key=len, default=None)
        for held in owners:
            if held.image.stem == longest and data is not None:
                held.side[name] = data
                self._num_bytes += len(data)
                self.names.add(name)
        return bool(owners)

    def pop(self) -> _Held:
        """The oldest image; it is no longer held."""
        held = self._held.popleft()
        self._num_bytes -= held.num_bytes
        self.names -= {held.image.name, *held.side}
        return held


class _Waiting:
    """Side files that have no image, by key; when there are too many the oldest are forgotten."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, bytes]] = {}
        self._num_bytes = 0

    def of(self, key: str) -> dict[str, bytes]:
        return self._files.get(key, {})

    def put(self, key: str, name: str, data: bytes) -> None:
        self._drop(key, name)
        self._files.setdefault(key, {})[name] = data
        self._num_bytes += len(data)
        if len(self._files[key]) > WAITING_FILES:
            self._drop(key, next(iter(self._files[key])))
        while self._num_bytes > WAITING_BYTES:
            oldest = next(iter(self._files))
            self._drop(oldest, next(iter(self._files[oldest])))

    def take(self, key: str, beginning: str) -> dict[str, bytes]:
        """The files of `key` whose names begin so; they wait no longer."""
        names = [name for name in self.of(key) if name.startswith(beginning)]
        return {name: self._drop(key, name) for name in names}

    def _drop(self, key: str, name: str) -> bytes:
        files = self.of(key)
        data = files.pop(name, b"")
        self._num_bytes -= len(data)
        if not files:
            self._files.pop(key, None)
        return data


def webdataset_key(name: str) -> str:
    """The path up to the first dot of its last part: WebDataset's rule, as in its
    `tariterators.base_plus_ext`."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def row_of(key: str, mark: str, columns: dict[str, Any], content: Content) -> Row:
    """The row of an image member."""
    if isinstance(content, tuple):
        return Row(key=key, mark=mark, columns=columns, error=content)
    if not content:
        error = (RowError.IMAGE_MISSING, "the image member is empty")
        return Row(key=key, mark=mark, columns=columns, error=error)
    return Row(key=key, mark=mark, images=(content,), columns=columns)


def columns_of(side: dict[str, bytes]) -> dict[str, Any]:
    """Side files as columns: a JSON object's fields, and text files under their extension."""
    columns: dict[str, Any] = {}
    for extension, data in side.items():
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if extension.lower().rpartition(".")[2] != "json":
            columns[extension.lower()] = text.strip()
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue  # the columns are null: a prompt that needs one is `bad_prompt`
        if isinstance(value, dict):
            columns = {**value, **columns}
    return columns
