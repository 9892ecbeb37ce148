"""Prepare: encoded bytes → uint8 pixels, and questions → token ids, on CPU actors.

One image row in, one row out, in order, end rows passed through. Images that a table only names are
fetched here, a batch's at once (`fetch.py`). What is wrong with an image or a
prompt becomes the row's error; its neighbours never notice. Pixels leave as uint8, a quarter of the
float32 that the model wants; the generating side rescales and normalises.

Loaded: Ray Data (160 MiB, 0.6 s of a core) and of transformers what makes token ids and renders chat
templates (25 MiB, 0.3 s), since only its own tokenizer has its own ids; 238 MiB a worker with a batch
in hand, where torch came along 518. Torch comes still with an image processor or a tokenizer that
is left to transformers (`image_processor.py`, `Checkpoint.tokenizer`), with a `config.json` that
leaves out what is asked of it, and with transformers 5.17, whose tokenizers import it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from llava_batch.checkpoint import Checkpoint
from llava_batch.errors import RowError, UsageError
from llava_batch.ids import answer_digest, image_id, printable, row_id
from llava_batch.job import Job
from llava_batch.prepare.fetch import Fetch, Fetched
from llava_batch.prepare.image_processor import load_image_processor
from llava_batch.prepare.pixels import (
    BadImage,
    check_canvas,
    configure_pillow,
    decode,
    expand_to_square,
)
from llava_batch.prepare.stores import Stores
from llava_batch.prepare.thumbnails import Thumbnails
from llava_batch.prepare.tiles import Tiles
from llava_batch.prompts.asks import Ask, Lookup, asks_of
from llava_batch.prompts.guards import unguarded
from llava_batch.prompts.image_tokens import Layout
from llava_batch.prompts.recipe import Recipe
from llava_batch.prompts.templates import BadPrompt, place_images
from llava_batch.tables import KEEP, PREPARED, packed, unpacked
from llava_batch.workers import process
from llava_batch.workers.counters import Counters
from llava_batch.workers.crash_guard import CrashGuard

_PASSED_ON = ("unit", "ordinal", "end", "key", "mark", "id_base", "error_code", "error_message")


_TABLE_BYTES = 16 * 2**20
"""Pixels in one table that leaves: 49 images of 336 x 336, or fewer that take more."""


class Prepare:
    """The Ray Data actor: `images` rows in, PREPARED rows out."""

    def __init__(
        self,
        job: Job,
        shared: Any,
        lookup: Lookup | None = None,
        recipe: Recipe | None = None,
        stores: Stores | None = None,
        standing: np.ndarray | None = None,
    ) -> None:
        """`stores` as the driver has them; None: as this process does."""
        configure_pillow(max_pixels=job.max_pixels, allow_truncated=job.allow_truncated)
        self._job = job
        self._checkpoint = checkpoint = Checkpoint.find(job)
        self._lookup, self._recipe = lookup, recipe
        self._fetch = Fetch.of(job, stores)
        self._standing = standing
        self._guard = CrashGuard(shared, "prepare", job.max_tries)
        self._counters = Counters(shared, "prepare")
        self._thumbnails = Thumbnails(shared)
        self._render = checkpoint.renderer(job.template)
        self._processor = load_image_processor(checkpoint)
        self._tiles = None
        if checkpoint.tiling is not None:
            self._tiles = Tiles(self._processor, checkpoint.tiling)
        as_checkpoint = job.image_aspect == "auto" and self._processor.pads
        self._pad = job.image_aspect == "pad" or as_checkpoint
        process.freeze_heap()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """A packed batch in, packed batches out."""
        yield from map(packed, self.tables(unpacked(batch)))

    def tables(self, table: pa.Table) -> Iterator[pa.Table]:
        """`images` rows in, PREPARED rows out, in tables that end where their pixels reach
        `_TABLE_BYTES`: no more is held at once."""
        columns = table.select([n for n in table.schema.names if not n.startswith(KEEP)])
        rows = columns.to_pylist()
        kept = table.select([n for n in table.schema.names if n.startswith(KEEP)])
        coming, start = _by_bytes(self._rows(rows)), 0
        while start < len(rows):
            made: list[dict[str, Any]] = []
            with self._counters.busy(made):
                made += next(coming)
                self._thumbnails.hand_in()
            prepared = pa.Table.from_pylist(made, schema=PREPARED)
            for field, values in zip(kept.schema, kept.slice(start, len(made)), strict=True):
                prepared = prepared.append_column(field, values)
            start += len(made)
            made = []
            yield prepared
        next(coming, None)  # what is to be done behind the last row

    def _rows(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if self._guard.is_clean(rows):
            yield from map(self._watched, self._with_images(rows))
            self._guard.done(rows)
        else:
            yield from map(self._careful, rows)

    def _careful(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row that was in hand when a worker died, by itself."""
        if not self._guard.may_try(row):
            row = row | self._guard.verdict()
        (made,) = [self._watched(r) for r in self._with_images([row])]
        self._guard.done([row])
        return made

    def _with_images(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows, the images that they only name put in. Not watched: it waits for storages, in
        bounds of its own."""
        wanted = [(row["uris"] or []) if not row["error_code"] else [] for row in rows]
        if not any(wanted):
            yield from rows
            return
        fetched = self._fetch.rows([[uri for uri in uris if uri] for uris in wanted])
        with closing(fetched):
            for row, got in zip(rows, fetched, strict=True):
                yield _filled(row, got) if got else row

    def _watched(self, row: dict[str, Any]) -> dict[str, Any]:
        with process.watchdog(self._job.stall_timeout_s):
            return self.row(row)

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """One `images` row as a PREPARED row (both as dicts)."""
        out = {name: row[name] for name in _PASSED_ON}
        out["num_images"] = len(row["images"] or row["uris"] or ())
        if row["end"]:
            return out
        image_ids: list[list[int]] = []
        if row["images"] and row["images"][0]:
            out["image_sha256"] = hashlib.sha256(row["images"][0]).hexdigest()
        if row["images"] and not row["error_code"]:
            try:
                image_ids = self._put_pixels(row["images"], out)
            except BadImage as error:
                out |= {"error_code": error.code.value, "error_message": str(error)}
            except MemoryError:
                what = "not enough memory to resize it"
                out |= {"error_code": RowError.IMAGE_TOO_LARGE.value, "error_message": what}
        columns = json.loads(row["columns"]) if row["columns"] else {}
        out["asks"] = [
            self._ask(ask, out, image_ids)
            for ask in asks_of(
                self._job,
                row["unit"],
                row["key"],
                columns,
                self._checkpoint.guards,
                lookup=self._lookup,
                sha256=out.get("image_sha256"),
                recipe=self._recipe,
            )
        ]
        if self._stands(out):
            out |= {"asks": [], "pixels": None, "shapes": None, "layouts": None, "copied": True}
        return out

    def _stands(self, row: dict[str, Any]) -> bool:
        """Whether all that is asked of the image is answered in a table of the folder already."""
        if self._standing is None or not row["asks"] or row["num_images"] != 1 or row["error_code"]:
            return False
        image = image_id(row["id_base"], row["key"], row["mark"])
        num_samples = self._job.num_samples
        wanted = [
            answer_digest(
                row_id(image, ask["question_id"], sample), row["image_sha256"], ask["questions"]
            )
            for ask in row["asks"]
            for sample in (range(num_samples) if num_samples > 1 else (None,))
        ]
        return bool(np.isin(np.array(wanted, np.uint64), self._standing).all())

    def _put_pixels(self, images: list[bytes], out: dict[str, Any]) -> list[list[int]]:
        """Decode and process `images` into `out`; returns the token ids that stand for each."""
        made = []
        for number, data in enumerate(images):
            image = decode(data, self._job.max_pixels)
            if number == 0:
                out["width"], out["height"] = image.size
                self._thumbnails.consider(image_id(out["id_base"], out["key"], out["mark"]), image)
            made.append(self._processed(image, several=len(images) > 1))
        out["pixels"] = b"".join(pixels.tobytes() for pixels, _ in made)
        out["shapes"] = [list(pixels.shape) for pixels, _ in made]
        out["layouts"] = [list(layout or ()) for _, layout in made]
        ids = []
        for pixels, layout in made:
            height, width = pixels.shape[2:]
            ids.append(self._checkpoint.image_ids(height, width, layout))
        return ids

    def _processed(self, image: Image.Image, *, several: bool) -> tuple[np.ndarray, Layout | None]:
        """uint8 `[t, 3, H, W]` of one image, and the grid of its tiles; `several`: it is not alone."""
        if self._tiles is not None:
            return self._tiles(image, several=several, most_pixels=self._job.max_pixels)
        check_canvas(*image.size, self._pad, self._processor.shortest_edge, self._job.max_pixels)
        if self._pad:
            image = expand_to_square(image, self._processor.background)
        return self._processor.pixels(image)[None], None

    def _ask(self, ask: Ask, row: dict[str, Any], image_ids: list[list[int]]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "question_id": ask.question_id,
            "questions": [printable(unguarded(turn)) for turn in ask.turns],
        }
        if row["error_code"]:  # nobody will be asked; and the row may be one that kills
            return made
        try:
            if ask.why_not:
                raise BadPrompt(ask.why_not)
            _refuse_half_characters(ask.turns)
            turns = place_images(ask.turns, max(row["num_images"], 1))
            segments = self._render(turns, self._job.system)
            made["segments"] = [unguarded(s) for s in segments]
            made["token_ids"] = [self._token_ids(s, i, image_ids) for i, s in enumerate(segments)]
        except (BadPrompt, UsageError) as error:  # or the template cannot take this very text
            made |= {"error_code": RowError.BAD_PROMPT.value, "error_message": str(error)}
        return made

    def _token_ids(self, segment: str, number: int, image_ids: list[list[int]]) -> list[int]:
        """The segment's ids, each image's mark replaced by what stands for the image; all images are the
        first segment's."""
        image_token = self._checkpoint.image_token_id
        coming = iter(image_ids)
        ids: list[int] = []
        for token in self._checkpoint.encode(segment, first=number == 0):
            ids += next(coming, ()) if token == image_token else [token]
        return ids


def _by_bytes(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """PREPARED rows, as many together as hold `_TABLE_BYTES` of pixels; at least one."""
    held: list[dict[str, Any]] = []
    num_bytes = 0
    for row in rows:
        held.append(row)
        num_bytes += len(row.get("pixels") or b"")
        if num_bytes >= _TABLE_BYTES:
            yield held
            held, num_bytes = [], 0
    if held:
        yield held


def _filled(row: dict[str, Any], got: list[Fetched]) -> dict[str, Any]:
    """The row with what was fetched, in the places that its URIs stand in; the first that could not be
    had is its error."""
    coming = iter(got)
    there = row["images"] or [b""] * len(row["uris"])
    images = [next(coming) if uri else data for uri, data in zip(row["uris"], there, strict=True)]
    filled = row | {"images": [i if isinstance(i, bytes) else b"" for i in images]}
    bad = next((i for i in images if isinstance(i, BadImage)), None)
    if bad is not None:
        filled |= {"error_code": bad.code.value, "error_message": printable(str(bad))}
    return filled


def _refuse_half_characters(turns: Iterable[str]) -> None:
    """JSON can hold one half of a surrogate pair, which is no text: no tokenizer or table takes it.

    Raises:
        BadPrompt: with the half in words.
    """
    half = re.search("[\ud800-\udfff]", "".join(turns))
    if half:
        raise BadPrompt(f"its text holds half a character (U+{ord(half[0]):04X})")
