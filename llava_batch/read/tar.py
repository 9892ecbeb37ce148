"""A WebDataset tar → rows, in one pass, however damaged it is.

Every image member is a row (`--image-column EXT`: every member of that extension, and other images
are side files); its key and its side files are settled in `tar_samples`. What is stated of damage:
- a header that does not read: skipped to the next one that does, one `shard_damaged` row for the gap;
- an image cut short: a `shard_damaged` row under its key; another member: one for the gap;
- no end mark: a `shard_damaged` row, since nobody knows what else there was;
- a link in an image's place: `image_missing`; what it points to is a row of its own.
Hidden members (`._a.jpg`) and those without an extension belong to no sample; a leading `./` is no
part of a name. Knows nothing of Ray or Arrow; nothing is ever written to disk, so a member's path
cannot escape.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

from llava_batch.errors import RowError, UsageError
from llava_batch.read.image_names import is_image
from llava_batch.read.reading import Kind, Look, Reading
from llava_batch.read.row import Row, damaged
from llava_batch.read.tar_first_rules import FirstRules
from llava_batch.read.tar_look import MOST_MEMBERS, opened_at, to_look_into
from llava_batch.read.tar_members import Damage, Member, members
from llava_batch.read.tar_samples import (
    Content,
    ImageMember,
    Samples,
    SideMember,
    webdataset_key,
)
from llava_batch.unit import ROW_RULES, Unit

_STREAM_BYTES = 4 * 2**20

_SIDE_BYTES = 16 * 2**20
"""A side member (`.json`, `.txt`, …) over this size is not read."""

_LEAD = re.compile(r"^(\./+|/+)+")
_HIDDEN = re.compile(r"(^|/)\.(?!\.?/)")


class Tar(Kind):
    """One tar, one unit; only reading tells what it holds."""

    extensions = frozenset({".tar"})

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        at = unit.fs.open_input_stream(unit.path, buffer_size=_STREAM_BYTES)
        with opened_at(unit, unit.span[0]) if unit.span else at as stream:
            yield from read_tar(
                stream,
                max_image_bytes=reading.max_image_bytes,
                image_extension=reading.image_column,
                rules=unit.rules,
            )

    def look(self, unit: Unit, reading: Reading) -> Look:
        with to_look_into(unit) as (stream, most_bytes):
            return look_into(stream, reading.image_column, most_bytes)

    def part(self, unit: Unit, look: Look, first: int, count: int) -> tuple[Unit, int]:
        if not first < len(look.starts) or unit.retry is not None or unit.rules == 1:
            return unit, first
        start, between = look.starts[first]
        return replace(unit, span=(start, start)), between

    def refuse(self, unit: Unit, reading: Reading) -> None:
        if reading.image_column is None or unit.rules == 1:
            return
        take = _Take(reading.image_column, max_image_bytes=0)
        there: set[str] = set()
        with unit.fs.open_input_stream(unit.path, buffer_size=_STREAM_BYTES) as stream:
            for member in members(stream, lambda name: 0):
                part = None if isinstance(member, Damage) else take.part(member)
                if isinstance(part, ImageMember):
                    return
                if part is not None and is_image(part.name):
                    there.add(part.name.rpartition(".")[2])
        if there:
            raise UsageError(
                f"--image-column {reading.image_column}: {unit.shown} has {take.why_missing}; there are "
                f"{', '.join(sorted(there))}"
            )


def read_tar(
    stream: IO[bytes],
    *,
    max_image_bytes: int,
    image_extension: str | None = None,
    rules: int = ROW_RULES,
) -> Iterator[Row]:
    """The rows of the tar in `stream` (read forward only); never raises for what is in it.

    `image_extension` says which members are rows (None: all that are images by their names); `rules`
    is `Unit.rules`.
    """
    if rules == 1:
        image_extension = None
    take = _Take(image_extension, max_image_bytes)
    samples = FirstRules() if rules == 1 else Samples(take.why_missing)
    num_damaged = 0
    for member in members(stream, take.limit):
        problem = take.problem(member)
        if problem:
            num_damaged += 1
            yield damaged("", f"%damaged-{num_damaged}", problem)
        part = None if isinstance(member, Damage) else take.part(member)
        if part is not None:
            yield from samples.add(part)
    yield from samples.end()


def look_into(
    stream: IO[bytes], image_extension: str | None = None, most_bytes: int | None = None
) -> Look:
    """How many rows the tar has, by its headers: as many as `read_tar` gives of it; of more than
    `most_bytes` or MOST_MEMBERS, those that come up to there."""
    take = _Take(image_extension, 0)
    samples = Samples(take.why_missing)
    starts: list[tuple[int, int]] = []
    num_rows, run, key, passed = 0, (0, 0), "", 0
    for number, member in enumerate(members(stream, lambda name: 0)):
        num_rows += take.problem(member) is not None
        part = None if isinstance(member, Damage) else take.part(member)
        if part is None or isinstance(member, Damage):
            continue
        passed = member.start + member.size
        if webdataset_key(part.name) != key:
            key, run = webdataset_key(part.name), (member.start, 0)
        num_rows += sum(1 for _ in samples.add(part))
        if isinstance(part, ImageMember):
            starts.append(run)
            run = (run[0], run[1] + 1)
        if passed > (most_bytes or passed) or number >= MOST_MEMBERS:
            return Look(images=len(starts), is_whole=False, num_bytes=passed, starts=tuple(starts))
    num_rows += sum(1 for _ in samples.end())
    return Look(images=num_rows, num_bytes=passed, starts=tuple(starts))


@dataclass(frozen=True)
class _Take:
    """What is taken of a member: the image, the side file, or nothing."""

    image_extension: str | None
    max_image_bytes: int

    @property
    def why_missing(self) -> str:
        return f"no {self.image_extension or 'image'} member"

    def stem(self, name: str) -> str | None:
        """The name without its extension where the member is a row."""
        if self.image_extension is None:
            return name.rpartition(".")[0] if is_image(name) else None
        ending = f".{self.image_extension.lower().lstrip('.')}"
        return name[: -len(ending)] if name.lower().endswith(ending) else None

    def limit(self, name: str) -> int:
        """The most bytes that are read of the member."""
        if self.stem(name) is not None:
            return self.max_image_bytes
        return 0 if is_image(name) else _SIDE_BYTES

    def problem(self, member: Member | Damage) -> str | None:
        """What is damaged, where no image's own row says it."""
        if isinstance(member, Damage):
            return member.what
        if member.cut_short and self.stem(member.name) is None:
            return f"the tar ends within {member.name}"
        return None

    def part(self, member: Member) -> ImageMember | SideMember | None:
        """The member as its sample has it; None where it belongs to none."""
        name = _LEAD.sub("", member.name)
        if _HIDDEN.search(name) or "." not in name.rpartition("/")[2]:
            return None
        stem = self.stem(name)
        if stem is not None:
            return ImageMember(name=name, stem=stem, content=self._content(member))
        usable = not member.cut_short and not is_image(name)
        return SideMember(name=name, data=member.data if usable else None)

    def _content(self, member: Member) -> Content:
        """An image's bytes, or what is wrong with them."""
        if member.link:
            return RowError.IMAGE_MISSING, f"a link to {member.link}; links are not followed"
        if member.cut_short:
            return RowError.SHARD_DAMAGED, f"the tar ends within the member's {member.size} bytes"
        if member.data is None:
            limit = f"the limit is {self.max_image_bytes} (--max-image-bytes)"
            return RowError.IMAGE_TOO_LARGE, f"{member.size} bytes, {limit}"
        return member.data
