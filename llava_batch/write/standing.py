"""Standing: answers of tables whose rows go by keys, that may come again in other files of the table.

A table's writer rewrites data files (compaction, a changed row): the same keys then stand in a new file, and
their answers in the tables of units whose files vanished or lost rows. Where an image comes with the same id,
the same bytes and the same questions, its answers are copied into the new unit's table and not
bought again; whether so or answered anew, the id goes from the older table at once:

    _manifest/_moving.json is written, then the new unit's table and its record, then each older table without
    those ids (or none), then _moving.json goes

so that a kill leaves an id twice only until the next run's first write, which ends the move (`end_move`). Held in
the driver: 20 bytes for each older row, and one older table at a time; in each preparing worker 8.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.ids import answer_digest, image_digest, image_of
from llava_batch.tables import BOOKKEEPING, KEEP
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger
from llava_batch.write.record import Record


class Standing:
    """The answers of `records`, found by image; those of units that are answered again whole (`anew`) are
    never copied, for their tables are replaced."""

    def __init__(self, ledger: Ledger, records: Sequence[Record], anew: frozenset[str]) -> None:
        self._ledger = ledger
        self._units = [r.unit for r in records if r.unit in ledger.records]
        images: list[np.ndarray] = [np.zeros(0, np.uint64)]
        owners: list[np.ndarray] = [np.zeros(0, np.int32)]
        answers: list[np.ndarray] = [np.zeros(0, np.uint64)]
        for number, name in enumerate(self._units):
            table = ledger.read_table(name)
            found = np.unique(_image_digests(table, name)) if table else images[0]
            images.append(found)
            owners.append(np.full(len(found), number, np.int32))
            if table and name not in anew:
                answers.append(_answer_digests(table))
        order = np.argsort(np.concatenate(images), kind="stable")
        self._images = np.concatenate(images)[order]
        self._owners = np.concatenate(owners)[order]
        self.answers = np.unique(np.concatenate(answers))
        """Digests of the answers that can be copied (`ids.answer_digest`), sorted."""

    def copied(self, markers: pa.Table, unit: Unit) -> pa.Table:
        """The older answers of the images that `markers` name, as rows of `unit` in their places, with what
        `markers` keep of their columns.

        Raises:
            LookupError: an image has none there any more.
        """
        place = {image: i for i, image in enumerate(markers["id"].to_pylist())}
        sha256 = markers["image_sha256"].to_pylist()
        parts: list[pa.Table] = []
        found: set[str] = set()
        for name in self._owners_of(place):
            table = self._ledger.read_table(name)
            if table is None:
                continue
            theirs = [image_of(ident, name) for ident in table["id"].to_pylist()]
            same = [
                i
                for i, (image, said) in enumerate(
                    zip(theirs, table["image_sha256"].to_pylist(), strict=True)
                )
                if image in place and image not in found and said == sha256[place[image]]
            ]
            found |= {theirs[i] for i in same}
            at = [place[theirs[i]] for i in same]
            parts.append(_as_rows_of(unit, table.take(pa.array(same, pa.int64())), markers, at))
        if missing := place.keys() - found:
            raise LookupError(f"the answers of {min(missing)} are no longer where they stood")
        return pa.concat_tables(parts)

    @contextmanager
    def move(self, unit: Unit, table: pa.Table) -> Iterator[None]:
        """While the unit's table and record are written: `table`'s ids go from the older tables."""
        images = {image_of(ident, unit.name) for ident in table["id"].to_pylist()}
        older = [name for name in self._owners_of(images) if name != unit.name]
        if not older:
            yield
            return
        said = {"to": unit.name, "source": unit.source, "from": older}
        self._ledger.begin_move(json.dumps(said).encode())
        yield
        end_move(self._ledger)

    def _owners_of(self, images: Any) -> list[str]:
        wanted = np.fromiter((image_digest(image) for image in images), np.uint64, len(images))
        first = np.searchsorted(self._images, wanted)
        past = np.searchsorted(self._images, wanted, side="right")
        # Of one image there is one but where a kill, or an older version, left more.
        hits = [self._owners[a:b] for a, b in zip(first, past, strict=True) if a < b]
        return [self._units[i] for i in np.unique(np.concatenate(hits))] if hits else []


def end_move(ledger: Ledger) -> None:
    """End the move that was begun, if any was: where the new unit stands, the older tables lose its ids;
    where it does not, they stay as they are, and a table of it without a record goes."""
    data = ledger.moving()
    if data is None:
        return
    said = json.loads(data)
    record = ledger.records.get(said["to"])
    if record is not None and record.source == said["source"]:
        new = ledger.read_table(said["to"])
        moved = new["id"] if new is not None else pa.chunked_array([], pa.string())
        for name in said["from"]:
            if name != said["to"] and name in ledger.records:
                _take_out(ledger, ledger.records[name], moved)
    elif record is None:
        ledger.remove_table(said["to"])
    ledger.forget_move()


def _take_out(ledger: Ledger, record: Record, ids: pa.ChunkedArray) -> None:
    table = ledger.read_table(record.unit)
    if table is None:
        return
    left = table.filter(pc.invert(pc.is_in(table["id"], value_set=ids.combine_chunks())))
    if left.num_rows == table.num_rows:
        return
    if not left.num_rows:
        ledger.remove(record)
        return
    errors = Counter(code for code in left["error_code"].to_pylist() if code)
    images = len({image_of(ident, record.unit) for ident in left["id"].to_pylist()})
    ledger.replace(
        replace(record, rows=left.num_rows, images=images, errors=dict(sorted(errors.items()))),
        left,
    )


def _as_rows_of(unit: Unit, older: pa.Table, markers: pa.Table, at: list[int]) -> pa.Table:
    """`older` rows in the form in which rows come; `at` is each one's marker."""
    now = markers.take(pa.array(at, pa.int64()))
    count = Counter(at)
    seen: Counter[int] = Counter()
    positions = []
    for i in at:
        positions.append(seen[i])
        seen[i] += 1
    made: dict[str, Any] = {
        "unit": pa.array([unit.name] * len(at), pa.string()),
        "position": pa.array(positions, pa.int32()),
        "siblings": pa.array([count[i] for i in at], pa.int32()),
    }
    columns = []
    for field in markers.schema:
        if field.name in made:
            columns.append(made[field.name])
        elif field.name in BOOKKEEPING.names or field.name == "key" or field.name.startswith(KEEP):
            columns.append(now[field.name])
        else:
            columns.append(older[field.name].cast(field.type))
    return pa.table(columns, schema=markers.schema)


def _image_digests(table: pa.Table, unit: str) -> np.ndarray:
    ids = table["id"].to_pylist()
    return np.fromiter((image_digest(image_of(i, unit)) for i in ids), np.uint64, len(ids))


def _answer_digests(table: pa.Table) -> np.ndarray:
    """Of the good rows that are about one image."""
    good = table.filter(pc.and_(pc.equal(table["status"], "ok"), pc.equal(table["num_images"], 1)))
    rows = good.select(["id", "image_sha256", "turns"]).to_pylist()
    digests = (
        answer_digest(r["id"], r["image_sha256"], [turn["question"] for turn in r["turns"]])
        for r in rows
    )
    return np.fromiter(digests, np.uint64, len(rows))
