"""Pairs of an image and what was said about it, unit by unit, in the order of the input."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from llava_batch.answers.folder import Answers, open_answers
from llava_batch.errors import UsageError
from llava_batch.ids import escaped, image_id, image_of
from llava_batch.instruct.conversations import conversation

if TYPE_CHECKING:
    from llava_batch.read.row import Row
    from llava_batch.unit import Unit

Images = Callable[[str], Iterable[tuple[str, bytes]]]
"""unit name -> (image id, encoded bytes) of its images, in its order. The image id is what all ids of
answers about it begin with: `<unit>/<key>`, as in the answers table."""

Fetching = Callable[[Sequence[str]], Iterable[bytes | None]]
"""URIs -> their images in order, None for one that cannot be had."""

_ROWS_AT_ONCE = 32
_SIGNATURES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


@dataclass(frozen=True, kw_only=True)
class Said:
    """One conversation about an image; `answer` is its last."""

    id: str
    conversations: list[dict[str, str]]
    answer: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image and all that was said about it, in the order of the answers. `mark` is what the
    reader put behind a key that the unit holds twice (`%dup2`); mostly empty."""

    unit: str
    key: str
    mark: str
    image: bytes
    said: list[Said]

    @property
    def extension(self) -> str:
        """The image's kind, from its first bytes; else the key's extension; else `img`."""
        if self.image[:4] == b"RIFF" and self.image[8:12] == b"WEBP":
            return "webp"
        for signature, extension in _SIGNATURES.items():
            if self.image.startswith(signature):
                return extension
        _, dot, extension = self.key.rpartition("/")[2].rpartition(".")
        return extension.lower() if dot and extension.isalnum() else "img"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The answers, or kept instructions, of a folder, with their images."""

    answers: Answers
    images: Images

    @classmethod
    def open(cls, folder: str, images: Images) -> "Pairs":
        """Raises UsageError where the folder holds neither answers nor instructions."""
        return cls(answers=open_answers(folder), images=images)

    def units(self) -> Iterator[tuple[str, Iterator[Pair]]]:
        """Each table's name without its extension (the unit's), with its pairs; a unit with nothing
        to export has none.

        Raises:
            UsageError: an answer whose image is not among the unit's images.
        """
        for name, rows in self.answers.tables(self._columns()):
            yield name.rpartition(".")[0], self._pairs(rows)

    def _columns(self) -> list[str]:
        made = "conversations" in self.answers.schema.names
        return ["id", "unit", "key", "status", "conversations" if made else "turns"]

    def _pairs(self, rows: Iterable[dict[str, Any]]) -> Iterator[Pair]:
        said: dict[str, dict[str, tuple[str, list[Said]]]] = {}
        for row in rows:
            if row["status"] in ("ok", "kept"):
                images = said.setdefault(row["unit"], {})
                _, about = images.setdefault(image_of(row["id"], row["unit"]), (row["key"], []))
                about.append(_said(row))
        for unit, wanted in said.items():
            for name, image in self.images(unit):
                if name in wanted:
                    key, about = wanted.pop(name)
                    base = name[: name.rfind(f"/{escaped(key)}")]
                    mark = name[len(base) + 1 + len(escaped(key)) :]
                    yield Pair(unit=unit, key=key, mark=mark, image=image, said=about)
            if wanted:
                raise UsageError(
                    f"{len(wanted)} of the answers of unit {unit} without an image in the input (the first: "
                    f"{next(iter(wanted))}); give the input that the answers were made from"
                )


def _said(row: dict[str, Any]) -> Said:
    turns = row["conversations"] if "conversations" in row else conversation(row["turns"])
    return Said(id=row["id"], conversations=turns, answer=turns[-1]["value"])


def images_of(
    units: Sequence["Unit"],
    *,
    image_column: str | None = None,
    key_column: str | None = None,
    image_root: str | None = None,
    max_image_bytes: int = 256 * 2**20,
    fetch: Fetching | None = None,
) -> Images:
    """The images of a run's units, read again from its input. Of several images in one row the
    first is given; where a table only names it, as `fetch` has it."""
    from llava_batch.job import Job
    from llava_batch.read.kinds import read_rows
    from llava_batch.read.reading import Reading

    job = Job(image_column=image_column, key_column=key_column, image_root=image_root,
              max_image_bytes=max_image_bytes)  # fmt: skip
    reading = Reading.of(job, (), pa.schema([]))
    by_name = {unit.name: unit for unit in units}

    def images(name: str) -> Iterator[tuple[str, bytes]]:
        if name not in by_name:
            raise UsageError(f"--input: has no unit {name}, of which there are answers")
        rows = read_rows(by_name[name], reading)
        while batch := [*islice(rows, _ROWS_AT_ONCE)]:
            for row, image in _first_images(batch, fetch):
                yield image_id(by_name[name].id_base, row.key, row.mark), image

    return images


def _first_images(rows: Sequence["Row"], fetch: Fetching | None) -> Iterator[tuple["Row", bytes]]:
    """Each row's first image, of those that have one."""
    named = [row.uris[0] for row in rows if row.uris and row.uris[0]]
    if named and fetch is None:
        raise UsageError(
            f"row {rows[0].name}: its input only names its image, and nothing fetches it"
        )
    coming = iter(fetch(named)) if fetch is not None and named else iter(())
    for row in rows:
        image = next(coming) if row.uris and row.uris[0] else next(iter(row.images), None)
        if image:
            yield row, image
