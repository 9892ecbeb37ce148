"""Inspect: what is in the inputs, from a bounded sample of them, without a run.

Says of each kind of shard how many there are, their columns, Hive partitions, rows (where a footer or a
listing tells), and of the first rows of some shards the image sizes and what could not be decoded.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median
from typing import Any

import pyarrow as pa

from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.patience import BRIEF
from llava_batch.prepare.fetch import Fetch
from llava_batch.prepare.pixels import BadImage, configure_pillow, decode
from llava_batch.prepare.stores import Stores
from llava_batch.read.find import find_units
from llava_batch.read.kinds import KINDS, read_rows
from llava_batch.read.reading import Reading
from llava_batch.read.row import Row
from llava_batch.unit import Unit

SAMPLE = 200
"""Images decoded in all, unless told otherwise."""
_SAMPLED_UNITS = 8
_EXAMPLES = 5
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in the units of one kind."""

    kind: str
    """`tar`, `parquet`, `files`, or another of `read.kinds`."""
    units: tuple[str, ...]
    rows: int | None
    """Rows of all units; None where only reading them would tell (tars)."""
    columns: dict[str, str]
    """Each column's type, as the first sampled unit that has it says."""
    sampled: int
    """Images that were tried."""
    fetched: int
    """Those of them that the rows only name: they were to be fetched."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of those that decode, upright."""
    partitions: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    """Hive partitions: each key's values, sorted, null first."""
    bad: dict[str, int] = field(default_factory=dict)
    """Rows of the sample in error, by code."""
    examples: tuple[tuple[str, str], ...] = ()
    """(id, what is wrong with it) of the first of them, what is wrong with several once."""
    tables: tuple[str, ...] = ()
    """Of each lake table, in words: its snapshot, and what it is partitioned by."""


def inspect(
    inputs: Sequence[str], sample: int = SAMPLE, *, allow_http: bool = False
) -> list[Found]:
    """What is in `inputs`: one entry for each kind of shard there; decodes up to `sample` images, and
    fetches those that a table only names, of the web with `allow_http`.

    Raises:
        UsageError: an input that matches nothing or cannot be read, or a `sample` under 1.
    """
    if sample < 1:
        raise UsageError(f"--sample {sample}: give at least 1")
    if not inputs:
        raise UsageError("no input was given; name a shard, a folder, a glob or a URI")
    units = find_units(inputs)
    kinds = list(dict.fromkeys(unit.kind for unit in units))
    job = Job(input=tuple(inputs), allow_http=allow_http)
    fetch = Fetch(Stores.of(job), max_image_bytes=job.max_image_bytes, patience=BRIEF)
    try:
        with closing(fetch), _without_native_words():
            return [
                _look(kind, [u for u in units if u.kind == kind], sample, job, fetch)
                for kind in kinds
            ]
    except OSError as error:
        raise UsageError(f"{', '.join(inputs)}: cannot be read ({error})") from None


@contextmanager
def _without_native_words() -> Iterator[None]:
    """Drop what libtiff and its like write to stderr of a broken image: a hundred lines of tags, before
    the one line that says what is wrong."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def _look(kind: str, units: list[Unit], sample: int, limits: Job, fetch: Fetch) -> Found:
    """One kind's units, the sample spread evenly over some of them."""
    configure_pillow(max_pixels=limits.max_pixels, allow_truncated=limits.allow_truncated)
    chosen = units[:: max(1, -(-len(units) // min(_SAMPLED_UNITS, sample)))]
    columns: dict[str, str] = {}
    sizes: list[tuple[int, int]] = []
    bad: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    num_fetched = 0
    for unit in chosen:
        columns = _columns(unit) | columns
        for tried in _try_rows(unit, sample // len(chosen), limits, fetch):
            num_fetched += tried.is_fetched
            columns = {n: _kind(v) for n, v in tried.columns.items()} | columns
            if tried.size:
                sizes.append(tried.size)
            else:
                bad[tried.code] += 1
                examples.setdefault(f"{tried.code}: {tried.message}", []).append(tried.id)
    return Found(
        kind=kind,
        units=tuple(unit.name for unit in units),
        rows=_num_rows(units),
        columns=columns,
        sampled=len(sizes) + bad.total(),
        fetched=num_fetched,
        sizes=tuple(sizes),
        bad=dict(bad.most_common()),
        tables=tuple(dict.fromkeys(_table(unit) for unit in units if unit.of_table)),
        partitions=_partitions(units),
        examples=tuple(
            (ids[0], what + (f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""))
            for what, ids in [*examples.items()][:_EXAMPLES]
        ),
    )


def _table(unit: Unit) -> str:
    assert unit.of_table is not None
    said = f"table {unit.of_table.table}: snapshot {unit.of_table.snapshot}"
    by = ", ".join(unit.of_table.partitions)
    return f"{said}, partitioned by {by}" if by else said


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """One row of the sample: its first image's size, or what is wrong with it."""

    id: str
    columns: dict[str, Any]
    is_fetched: bool
    size: tuple[int, int] | None = None
    code: str = ""
    message: str = ""


def _try_rows(unit: Unit, most: int, limits: Job, fetch: Fetch) -> Iterator[_Tried]:
    """The unit's first rows, each decoded."""
    # Where only rows tell the columns: any name, then side files are read.
    wanted = ("*",) if KINDS[unit.kind].columns(unit) is None else ()
    reading = Reading.of(limits, wanted, pa.schema([]))
    for row in islice(read_rows(unit, reading), most):
        tried = _Tried(id=f"{unit.name}/{row.name}", columns=row.columns, is_fetched=bool(row.uris))
        try:
            image = decode(_bytes_of(row, fetch), limits.max_pixels)
            yield replace(tried, size=image.size)
        except BadImage as error:
            yield replace(tried, code=error.code.value, message=" ".join(str(error).split()))


def _bytes_of(row: Row, fetch: Fetch) -> bytes:
    """The row's first image, fetched where the row only names it.

    Raises:
        BadImage: there is none.
    """
    if row.error:
        raise BadImage(*row.error)
    if row.images and row.images[0]:
        return row.images[0]
    with closing(fetch.rows([row.uris[:1]])) as fetched:
        ((image,),) = fetched
    if isinstance(image, BadImage):
        raise image
    return image


def _columns(unit: Unit) -> dict[str, str]:
    """The columns and types that the unit says before it is read; of other kinds, the rows tell."""
    columns = {f.name: str(f.type) for f in KINDS[unit.kind].columns(unit) or ()}
    return columns | dict.fromkeys(dict(unit.partition), "string")


def _partitions(units: list[Unit]) -> dict[str, tuple[str | None, ...]]:
    found: dict[str, set[str | None]] = {}
    for unit in units:
        for key, value in unit.partition:
            found.setdefault(key, set()).add(value)
    return {key: tuple(sorted(v, key=lambda v: (v is not None, v))) for key, v in found.items()}


def _kind(value: object) -> str:
    """A value's type, as a side file has it."""
    return "null" if value is None else type(value).__name__


def _num_rows(units: list[Unit]) -> int | None:
    """Rows of all units from their footers or listings; None for tars, and where one does not read."""
    total = 0
    whole = {
        (u.path, u.members, u.span, u.of_table and u.name): replace(u, row_groups=None, rows=None)
        for u in units
    }
    for unit in whole.values():
        count = KINDS[unit.kind].count(unit)
        if count is None:
            return None
        total += count
    return total


def told(found: Found) -> list[str]:
    """The finding in lines of plain text."""
    count = "not counted" if found.rows is None else f"{found.rows:,}"
    first = ", ".join(found.units[:3]) + (", …" if len(found.units) > 3 else "")
    noun = "unit" if len(found.units) == 1 else "units"
    lines = [f"{found.kind}: {len(found.units):,} {noun} ({first}); rows: {count}"]
    lines += [f"  {table}" for table in found.tables]
    if found.columns:
        lines.append("  columns: " + ", ".join(f"{n} ({t})" for n, t in found.columns.items()))
    if found.partitions:
        lines.append(
            "  partitions: " + ", ".join(_range(k, v) for k, v in found.partitions.items())
        )
    if found.sizes:
        widths, heights = zip(*found.sizes, strict=True)
        lines.append(
            f"  images: {min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}, "
            f"median {median(widths):.0f}x{median(heights):.0f}"
        )
    codes = ", ".join(f"{n} {code}" for code, n in found.bad.items())
    named = f" ({found.fetched} by their paths or URIs)" if found.fetched else ""
    lines.append(f"  sample of {found.sampled}{named}: {codes or 'all can be decoded'}")
    return lines + [f"    {ident}: {what}" for ident, what in found.examples]


def _range(key: str, values: tuple[str | None, ...]) -> str:
    first, last = ("null" if value is None else value for value in (values[0], values[-1]))
    return f"{key} ({first})" if len(values) == 1 else f"{key} ({len(values)}: {first} … {last})"
