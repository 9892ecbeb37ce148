"""A WebDataset tar → rows, in one pass, however damaged it is.

The key of a sample is its members' path up to the first dot of the base name (webdataset's rule).
What is stated for tars that break the format:
- a header that does not read: skipped to the next one that does, one `shard_damaged` row for the gap;
- an image cut short: a `shard_damaged` row under its sample's key; another member: one for the gap;
- no end mark: a `shard_damaged` row, since nobody knows what else there was;
- a link in an image's place: `image_missing`; what it points to is a row of its own;
- a key seen again: its image is a row of its own, marked `%dup2`, `%dup3` …; late side members are lost;
- a sample without an image: `image_missing`, at the end, unless its image came later;
- several images in one sample: the one whose extension has no dot; otherwise a row for each.
Hidden members (`._a.jpg`) and those without an extension belong to no sample; a leading `./` is no
part of a key. Knows nothing of Ray or Arrow; nothing is ever written to disk, so a member's path
cannot escape.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from llava_batch.errors import RowError
from llava_batch.read.image_names import is_image
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.row import Keys, Row, damaged, missing
from llava_batch.read.tar_members import Damage, Member, members
from llava_batch.unit import Unit

_STREAM_BYTES = 4 * 2**20

_SIDE_BYTES = 16 * 2**20
"""A side member (`.json`, `.txt`, …) over this size is not read."""

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
"""A member's key and extension: WebDataset's rule, as in its `tariterators.base_plus_ext`, whose
module loads torch."""

_LEAD = re.compile(r"^(\./+|/+)+")
_HIDDEN = re.compile(r"(^|/)\.(?!\.?/)")

_Content = bytes | tuple[RowError, str]
"""An image's or side member's bytes, or what keeps an image from being read."""


@dataclass
class _Sample:
    """The adjacent members of one key."""

    key: str
    images: dict[str, _Content] = field(default_factory=dict)
    side: dict[str, bytes] = field(default_factory=dict)


class Tar(Kind):
    """One tar, one unit; only reading tells what it holds."""

    extensions = frozenset({".tar"})

    def rows(self, unit: Unit, reading: Reading) -> Iterator[Row]:
        with unit.fs.open_input_stream(unit.path, buffer_size=_STREAM_BYTES) as stream:
            yield from read_tar(stream, max_image_bytes=reading.max_image_bytes)


def read_tar(stream: IO[bytes], *, max_image_bytes: int) -> Iterator[Row]:
    """The rows of the tar in `stream` (read forward only); never raises for what is in it."""
    seen = Keys()
    waiting: dict[str, Row] = {}
    sample: _Sample | None = None
    for item in _members(stream, max_image_bytes):
        if isinstance(item, Row):
            yield item
            continue
        key, extension, content = item
        if sample is None or sample.key != key:
            yield from _finish(sample, seen, waiting)
            sample = _Sample(key)
        _add(sample, extension, content)
    yield from _finish(sample, seen, waiting)
    yield from waiting.values()


def _members(stream: IO[bytes], max_bytes: int) -> Iterator[Row | tuple[str, str, _Content]]:
    """(key, extension, content) for each file that belongs to a sample, and rows for the damage."""

    def limit(name: str) -> int:
        return max_bytes if is_image(name) else _SIDE_BYTES

    num_damaged = 0
    for member in members(stream, limit):
        problem = _problem(member)
        if problem:
            num_damaged += 1
            yield damaged("", f"%damaged-{num_damaged}", problem)
        if isinstance(member, Damage):
            continue
        name = _LEAD.sub("", member.name)
        parts = _NAME.match(name)
        if not parts or _HIDDEN.search(name):
            continue
        content = _content(member, max_bytes)
        if content is not None:
            yield parts[1], parts[2].lower(), content


def _problem(member: Member | Damage) -> str | None:
    """What is damaged, where no image's own row says it."""
    if isinstance(member, Damage):
        return member.what
    if member.cut_short and not is_image(member.name):
        return f"the tar ends within {member.name}"
    return None


def _content(member: Member, max_bytes: int) -> _Content | None:
    """An image's bytes or what is wrong with them; a side member's bytes, or None if unusable."""
    if not is_image(member.name):
        return None if member.cut_short else member.data
    if member.link:
        return RowError.IMAGE_MISSING, f"a link to {member.link}; links are not followed"
    if member.cut_short:
        return RowError.SHARD_DAMAGED, f"the tar ends within the member's {member.size} bytes"
    if member.data is None:
        return RowError.IMAGE_TOO_LARGE, (
            f"{member.size} bytes, the limit is {max_bytes} (--max-image-bytes)"
        )
    return member.data


def _add(sample: _Sample, extension: str, content: _Content) -> None:
    if is_image(extension):
        sample.images.setdefault(extension, content)
    elif isinstance(content, bytes):
        sample.side.setdefault(extension, content)


def _finish(sample: _Sample | None, seen: Keys, waiting: dict[str, Row]) -> Iterator[Row]:
    """The rows of a sample whose last member has passed."""
    if sample is None:
        return
    columns = _columns(sample.side)
    if not sample.images:
        if sample.key not in seen:
            waiting.setdefault(sample.key, missing(sample.key, "no image member", columns))
        return
    waiting.pop(sample.key, None)
    for key, content in _chosen(sample):
        mark = seen.mark(key)
        if isinstance(content, tuple):
            yield Row(key=key, mark=mark, columns=columns, error=content)
        elif not content:
            error = (RowError.IMAGE_MISSING, "the image member is empty")
            yield Row(key=key, mark=mark, columns=columns, error=error)
        else:
            yield Row(key=key, mark=mark, images=(content,), columns=columns)


def _chosen(sample: _Sample) -> list[tuple[str, _Content]]:
    """The sample's image, or each of them where none has a plain extension."""
    plain = [e for e in sample.images if "." not in e]
    if plain:
        return [(sample.key, sample.images[plain[0]])]
    if len(sample.images) == 1:
        return [(sample.key, next(iter(sample.images.values())))]
    return [(f"{sample.key}.{e.rpartition('.')[0]}", c) for e, c in sample.images.items()]


def _columns(side: dict[str, bytes]) -> dict[str, Any]:
    """Side members as columns: a JSON object's fields, and text members under their extension."""
    columns: dict[str, Any] = {}
    for extension, data in side.items():
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if extension.rpartition(".")[2] != "json":
            columns[extension] = text.strip()
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue  # the columns are null: a prompt that needs one is `bad_prompt`
        if isinstance(value, dict):
            columns = {**value, **columns}
    return columns
