"""Parts: answered rows of open units, kept safe before their units are whole.

    OUT/_manifest/_parts/<token>.part    an Arrow IPC stream of answer rows as they came, by unit

One file holds the rows of all open units since the last one, and its schema's metadata say under which
settings and from which inputs they were answered. A kill costs the rows that came after it. A part goes
when none of its units is open any more; readers of the folder never see one. Its rows lie in a file of
this machine as well, from which they are read when their unit is whole: memory holds none of them.
"""

import json
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.storage import delete_file, read_bytes, write_whole
from llava_batch.tables import BOOKKEEPING, KEEP, load_schema
from llava_batch.unit import Unit
from llava_batch.write.ledger import PARTS, Ledger

_FINGERPRINT, _SOURCES = b"llava_batch.fingerprint", b"llava_batch.sources"


class Parts:
    """The parts of one folder: those of earlier runs, and those that this run puts there."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._units: dict[str, set[str]] = {}
        """Of each part's path, the units that are open."""

    def take_up(self, units: Iterable[Unit], *, only_look: bool = False) -> dict[str, pa.Table]:
        """Rows that earlier runs left of open `units`, by unit: those of images that were answered
        whole, each row once. Parts of which nothing can be taken go, unless this is `only_look`."""
        units = [*units]
        wanted = {unit.name: unit.as_read for unit in units if is_kept(unit)}
        later = {(unit.name, unit.as_read) for unit in units if unit.limit is not None}
        found: dict[str, list[pa.Table]] = {}
        for path in self._ledger.parts:
            rows = self._read(path)
            sources = {} if rows is None else self._sources(rows)
            if not later.isdisjoint(sources.items()):
                continue  # for the run without --limit
            live = {name for name, source in sources.items() if wanted.get(name) == source}
            if rows is None or not live:
                if not only_look:
                    self._delete(path)
                continue
            self._units[path] = live
            for name in live:
                found.setdefault(name, []).append(rows.filter(pc.equal(rows["unit"], name)))
        whole = {name: _whole_images(pa.concat_tables(rows)) for name, rows in found.items()}
        return {name: _mapped(_stream(rows)) for name, rows in whole.items() if rows.num_rows}

    def put(self, rows: pa.Table, sources: Mapping[str, str]) -> pa.Table:
        """Write a part of rows of these units; returns the rows, which lie in memory no more."""
        said = {_FINGERPRINT: self._ledger.fingerprint, _SOURCES: json.dumps(sources)}
        rows = rows.replace_schema_metadata(said)
        data = _stream(rows)
        path = f"{self._ledger.out.path}/{PARTS}{secrets.token_hex(8)}.part"
        write_whole(self._ledger.out.fs, path, data, self._ledger.patience)
        self._units[path] = set(sources)
        return _mapped(data)

    def drop(self, unit: str) -> None:
        """The unit is committed: parts that hold rows of it alone are not needed any more."""
        for path, units in [*self._units.items()]:
            units.discard(unit)
            if not units:
                self._delete(path)
                del self._units[path]

    def _read(self, path: str) -> pa.Table | None:
        """The rows of a part, or None where it is of other settings or columns, or does not read."""
        ledger = self._ledger
        data = ledger.patience.keep_trying(lambda: read_bytes(ledger.out.fs, path))
        try:
            rows = pa.ipc.open_stream(pa.py_buffer(data or b"")).read_all()
            fits = (rows.schema.metadata or {})[_FINGERPRINT].decode() == ledger.fingerprint
        except (OSError, ValueError, KeyError, pa.ArrowException):  # cut short, or none of ours
            return None
        if not fits or {f.name: f.type for f in rows.schema} != self._columns():
            return None
        return _mapped(pa.py_buffer(data))

    def _columns(self) -> dict[str, pa.DataType]:
        keep = [field.with_name(KEEP + field.name) for field in self._ledger.keep or ()]
        return {f.name: f.type for f in (*load_schema("answers"), *BOOKKEEPING, *keep)}

    @staticmethod
    def _sources(rows: pa.Table) -> dict[str, str]:
        sources: dict[str, str] = json.loads(rows.schema.metadata[_SOURCES])
        return sources

    def _delete(self, path: str) -> None:
        self._ledger.patience.keep_trying(lambda: delete_file(self._ledger.out.fs, path))


def drop_other_parts(ledger: Ledger, sources: Mapping[str, str]) -> None:
    """Delete the parts with rows of a unit whose input is not what `sources` says of it: they may be of
    images that are gone."""
    for path in ledger.parts:
        data = ledger.patience.keep_trying(partial(read_bytes, ledger.out.fs, path))
        try:
            said = pa.ipc.open_stream(pa.py_buffer(data or b"")).schema.metadata or {}
            of = json.loads(said[_SOURCES])
        except (OSError, ValueError, KeyError, pa.ArrowException):  # cut short, or none of ours
            of = {}
        if not of or any(sources.get(unit) != source for unit, source in of.items()):
            ledger.patience.keep_trying(partial(delete_file, ledger.out.fs, path))


def is_kept(unit: Unit) -> bool:
    """Whether a unit's rows are kept in parts: not where it is answered in part only."""
    return unit.limit is None and unit.retry is None


def _stream(rows: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue()


def _mapped(data: pa.Buffer) -> pa.Table:
    """The rows of an IPC stream, in a file of this machine that has no name any more."""
    with tempfile.NamedTemporaryFile(prefix="llava-batch-") as file:
        file.write(data)
        file.flush()
        return pa.ipc.open_stream(pa.memory_map(file.name)).read_all()


def _whole_images(rows: pa.Table) -> pa.Table:
    """The rows of images of which all rows are there, each row once."""
    names = ("ordinal", "position", "siblings")
    places = [*zip(*(rows[n].to_pylist() for n in names), strict=True)]
    first = {(ordinal, position): i for i, (ordinal, position, _) in reversed([*enumerate(places)])}
    count = Counter(ordinal for ordinal, _ in first)
    whole = [i for i in sorted(first.values()) if count[places[i][0]] == places[i][2]]
    return rows.take(pa.array(whole, pa.int64()))
