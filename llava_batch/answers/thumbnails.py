"""`OUT/_thumbnails.bin`: added to by a run, read for the pages that embed the pictures.

The file is Parquet, but not by name (`*.parquet` is answers), and bounded. Its columns: `rank`, the hash
by which images were chosen; `image`, an answer's id without its question and sample; `jpeg`. Without
it a page shows placeholders.
"""

import base64
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llava_batch.errors import UsageError, first_line
from llava_batch.storage import Location, read_bytes, write_whole

FILE_NAME = "_thumbnails.bin"
MAX_BYTES = 11 * 2**20
"""Encoded bytes of all thumbnails of one page; a third more in base64."""

_SCHEMA = pa.schema({"rank": pa.int64(), "image": pa.string(), "jpeg": pa.binary()})


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
            jpegs = file.read_row_group(group, ["jpeg"])["jpeg"]
            for i in hits:
                jpeg = jpegs[i].as_py()
                if jpeg and jpeg.startswith(b"\xff\xd8") and len(jpeg) <= budget:
                    budget -= len(jpeg)
                    found[names[i]] = base64.b64encode(jpeg).decode()
    return found


def save(out: Location, fresh: list[tuple[int, str, bytes]], *, most: int) -> None:
    """Add `fresh` to the side file, which keeps the `most` of the smallest ranks."""
    path = f"{out.path}/{FILE_NAME}"
    held = read_bytes(out.fs, path)
    known = pq.read_table(pa.BufferReader(held)).to_pylist() if held else []
    merged = {name: (rank, name, jpeg) for rank, name, jpeg in fresh}
    for row in known:
        merged.setdefault(row["image"], (row["rank"], row["image"], row["jpeg"]))
    kept = sorted(merged.values())[:most]
    rows = [dict(zip(_SCHEMA.names, thumbnail, strict=True)) for thumbnail in kept]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink)
    write_whole(out.fs, path, sink.getvalue())


def drop(out: Location, goes: Callable[[str], bool]) -> None:
    """Take the thumbnails of the images out of the side file whose names `goes` says yes to."""
    path = f"{out.path}/{FILE_NAME}"
    held = read_bytes(out.fs, path)
    if not held:
        return
    known = pq.read_table(pa.BufferReader(held))
    left = known.filter(pa.array([not goes(name or "") for name in known["image"].to_pylist()]))
    if left.num_rows < known.num_rows:
        sink = pa.BufferOutputStream()
        pq.write_table(left, sink)
        write_whole(out.fs, path, sink.getvalue())


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
        raise UsageError(f"{at.shown}: cannot be read ({first_line(error)}); remove it") from None
