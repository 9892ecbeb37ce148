"""Thumbnails: `OUT/_thumbnails.bin` → the pictures that a page embeds, within a budget of bytes.

The file is Parquet, but not by name (`*.parquet` is answers). It has two columns: `image`, an
answer's id without its question and sample, and `jpeg`. Without it the page shows placeholders.
"""

import base64
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llava_batch.errors import UsageError
from llava_batch.storage import Location

FILE_NAME = "_thumbnails.bin"
MAX_BYTES = 11 * 2**20
"""Encoded bytes of all thumbnails of one page; a third more in base64."""


def thumbnail_names(out: Location) -> frozenset[str]:
    """The images that have a thumbnail; empty where the folder has none."""
    with _opened(out) as file:
        if file is None:
            return frozenset()
        return frozenset(n for n in file.read(["image"])["image"].to_pylist() if n)


def read_thumbnails(out: Location, images: Iterable[str], budget: int) -> dict[str, str]:
    """The thumbnails of `images` as base64 JPEG; those that would go over `budget` bytes left out."""
    wanted, found = set(images), {}
    with _opened(out) as file:
        if file is None or not wanted:
            return {}
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, ["image"])["image"].to_pylist()
            hits = [i for i, name in enumerate(names) if name in wanted and name not in found]
            if not hits:
                continue
            jpegs = file.read_row_group(group, ["jpeg"])["jpeg"].take(pa.array(hits)).to_pylist()
            for i, jpeg in zip(hits, jpegs, strict=True):
                if jpeg and jpeg.startswith(b"\xff\xd8") and len(jpeg) <= budget:
                    budget -= len(jpeg)
                    found[names[i]] = base64.b64encode(jpeg).decode()
    return found


@contextmanager
def _opened(out: Location) -> Iterator[pq.ParquetFile | None]:
    at = out.child(FILE_NAME)
    if at.info().type != pafs.FileType.File:
        yield None
        return
    try:
        with at.fs.open_input_file(at.path) as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowInvalid, KeyError) as error:
        raise UsageError(f"{at.shown}: cannot be read ({error}); remove it") from None
