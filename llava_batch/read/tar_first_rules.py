"""The rows of a tar by the first rules (`Unit.rules` 1): rows answered by them are found by them again.

The members in a row of one WebDataset key are one sample; its image is the one whose extension has no
dot, otherwise there is a row for each, its key with the dots; others of the sample are no rows. A key
seen again is marked `%dup2`; all side files of a sample are every image's of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from llava_batch.read.image_names import is_image
from llava_batch.read.row import Keys, Row, missing
from llava_batch.read.tar_samples import Content, ImageMember, SideMember, columns_of, row_of

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
"""Key and extension, by the expression of WebDataset's `tariterators.base_plus_ext`."""


@dataclass
class _Sample:
    """The adjacent members of one key."""

    key: str
    images: dict[str, Content] = field(default_factory=dict)
    side: dict[str, bytes] = field(default_factory=dict)


class FirstRules:
    """Takes a tar's members one by one, as `Samples` does, and gives the rows of the first rules."""

    def __init__(self) -> None:
        self._seen = Keys()
        self._waiting: dict[str, Row] = {}
        self._sample: _Sample | None = None

    def add(self, member: ImageMember | SideMember) -> Iterator[Row]:
        parts = _NAME.match(member.name)
        content = member.content if isinstance(member, ImageMember) else member.data
        if not parts or content is None:
            return
        key, extension = parts[1], parts[2].lower()
        if self._sample is None or self._sample.key != key:
            yield from self._finish()
            self._sample = _Sample(key)
        if is_image(extension):
            self._sample.images.setdefault(extension, content)
        elif isinstance(content, bytes):
            self._sample.side.setdefault(extension, content)

    def end(self) -> Iterator[Row]:
        yield from self._finish()
        yield from self._waiting.values()

    def _finish(self) -> Iterator[Row]:
        """The rows of the sample whose last member has passed."""
        sample = self._sample
        if sample is None:
            return
        columns = columns_of(sample.side)
        if not sample.images:
            if sample.key not in self._seen:
                row = missing(sample.key, "no image member", columns)
                self._waiting.setdefault(sample.key, row)
            return
        self._waiting.pop(sample.key, None)
        for key, content in _chosen(sample):
            yield row_of(key, self._seen.mark(key), columns, content)


def _chosen(sample: _Sample) -> list[tuple[str, Content]]:
    """The sample's image, or each of them where none has a plain extension."""
    plain = [e for e in sample.images if "." not in e]
    if plain:
        return [(sample.key, sample.images[plain[0]])]
    if len(sample.images) == 1:
        return [(sample.key, next(iter(sample.images.values())))]
    return [(f"{sample.key}.{e.rpartition('.')[0]}", c) for e, c in sample.images.items()]
