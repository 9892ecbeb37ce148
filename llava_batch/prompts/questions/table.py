"""The table of questions, sorted by join key, and what is asked of one image."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.errors import UsageError
from llava_batch.prompts.questions.formats import Record, read_records
from llava_batch.prompts.questions.join import closeness, join_key, unit_names
from llava_batch.storage import locate
from llava_batch.tables import load_schema

_BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of an image; `row` is its place in `Questions.table`."""

    question_id: str
    text: str
    row: int


@dataclass(frozen=True, kw_only=True)
class Questions:
    """All questions of a file. `table` has the columns of the `questions` schema; `joins` (the
    join keys, ascending) stand beside it row for row. `units` are the names that the input's units go
    by, as far as they are known. `notes` are sentences for the person who gave the file. Pickles
    without copying its buffers."""

    table: pa.Table
    joins: pa.StringArray
    notes: tuple[str, ...]
    units: frozenset[str] = frozenset()

    def among(self, units: Iterable[str]) -> Self:
        """The same for an input of these units: a question that names one joins no other's image."""
        return replace(self, units=frozenset().union(*map(unit_names, units)))

    def __len__(self) -> int:
        return len(self.table)

    def of(self, *, unit: str, key: str, sha256: str | None = None) -> list[Question]:
        """The questions of one image, in the file's order; empty where nothing joins.

        `sha256`, the hash of its encoded bytes, finds questions that brought the image itself.
        """
        names = [key] if sha256 is None else [key, f"sha256:{sha256}"]
        rows = {row for name in names for row in self._closest(unit, name)}
        found = [self._question(row) for row in rows]
        ordered = [question for _, question in sorted(found, key=lambda pair: pair[0])]
        # Unique among those of one name; the image's key and its hash may bring one id each.
        ids = _unique([question.question_id for question in ordered])
        return [replace(q, question_id=ident) for q, ident in zip(ordered, ids, strict=True)]

    def _closest(self, unit: str, name: str) -> list[int]:
        """The rows closest to the image among those that share its join key."""
        try:
            key = join_key(name)
        except ValueError:  # a key such as `/`
            return []
        start = bisect_left(self.joins, key, key=pa.StringScalar.as_py)
        stop = bisect_right(self.joins, key, lo=start, key=pa.StringScalar.as_py)
        images = self.table["image"].slice(start, stop - start).to_pylist()
        ranks = [closeness(image, unit, name, self.units) for image in images]
        best = max((rank for rank in ranks if rank is not None), default=None)
        return [start + i for i, rank in enumerate(ranks) if rank is not None and rank == best]

    def _question(self, row: int) -> tuple[int, Question]:
        fields = self.table.slice(row, 1).to_pylist()[0]
        question = Question(
            question_id=fields["question_id"],
            text=fields["text"],
            row=row,
        )
        return fields["order"], question


def read_questions(path: str) -> Questions:
    """Read a questions file (a local path or a URI) of any kind that `formats` knows.

    An id that several questions of one image share (LLaVA's files for TextVQA and MME use the
    image's name) is made unique by `:2`, `:3` … in the file's order.

    Raises:
        UsageError: the file, the line, and what is wrong with it; or a file without questions.
    """
    location = locate(path)
    notes: set[str] = set()
    records = read_records(location, notes)
    batches = list(_batches(records, location.shown, notes))
    if not batches:
        raise UsageError(f"{location.shown}: holds no question about an image")
    table = _with_unique_ids(pa.Table.from_batches(batches))
    table = table.take(pc.sort_indices(table, [("join", "ascending"), ("order", "ascending")]))
    return Questions(
        table=table.select(load_schema("questions").names).cast(load_schema("questions")),
        joins=_one_chunk(table["join"]),
        notes=tuple(sorted(notes)),
    )


_READ_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("image", pa.string()),
        ("text", pa.string()),
        ("order", pa.int64()),
        ("join", pa.string()),
    ]
)


def _batches(records: Iterable[Record], shown: str, notes: set[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of a bounded number of rows, so that few questions are Python objects."""
    rows: list[tuple[str, str, str, int, str]] = []
    without_image = 0
    for order, record in enumerate(records):
        if record.image is None:
            without_image += 1
            continue
        try:
            join = join_key(record.image)
        except ValueError as error:
            raise UsageError(f"{shown}, question {record.question_id}: {error}") from None
        image = join if record.image.startswith("data:") else record.image
        rows.append((record.question_id, image, record.text, order, join))
        if len(rows) == _BATCH_ROWS:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)
    if without_image:
        notes.add(f"Questions without an image, left out: {without_image}")


def _batch(rows: list[tuple[str, str, str, int, str]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, _READ_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_READ_SCHEMA)


def _with_unique_ids(table: pa.Table) -> pa.Table:
    groups = table.group_by(["join", "question_id"], use_threads=False).aggregate(
        [("order", "count")]
    )
    shared = groups.filter(pc.greater(groups["order_count"], 1))
    if not shared.num_rows:
        return table
    spoiled = pc.is_in(table["join"], value_set=pc.unique(shared["join"]))
    joins, ids = table["join"].to_pylist(), table["question_id"].to_pylist()
    places: dict[str, list[int]] = {}
    for place in pc.indices_nonzero(spoiled).to_pylist():
        places.setdefault(joins[place], []).append(place)
    for of_one_image in places.values():
        made = _unique([ids[place] for place in of_one_image])
        for place, question_id in zip(of_one_image, made, strict=True):
            ids[place] = question_id
    return table.set_column(0, "question_id", pa.array(ids, pa.string()))


def _unique(ids: Sequence[str]) -> list[str]:
    """`ids` with `:2`, `:3` … behind those that stand there before, past what others are called."""
    taken, made = set(ids), []
    seen: dict[str, int] = {}
    for name in ids:
        number = seen.get(name, 0) + 1
        while number > 1 and f"{name}:{number}" in taken:
            number += 1
        seen[name] = number
        made.append(name if number == 1 else f"{name}:{number}")
        taken.add(made[-1])
    return made


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
