"""Parts: answered rows of open units, kept safe before their units are whole.

    OUT/_manifest/_parts/<token>.part    an Arrow IPC stream of answer rows as they came, by unit

One file holds the rows of all open units since the last one, and its schema's metadata say under which
settings and from which inputs they were answered. A kill costs the rows that came after it. A part goes
when none of its units is open any more; readers of the folder never see one. Its rows lie in a file of
this machine as well (scratch.py), from which they are read when their unit is whole: memory holds none of them.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import wait
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava_batch.patience import Patience
from llava_batch.storage import delete_file, read_bytes, write_whole
from llava_batch.tables import BOOKKEEPING, KEEP, load_schema
from llava_batch.unit import Unit
from llava_batch.write.ledger import PARTS, Ledger
from llava_batch.write.scratch import Kept, Scratch

_FINGERPRINT, _SOURCES = b"llava_batch.fingerprint", b"llava_batch.sources"

Later = Callable[[Callable[[Patience], Any], int], Any]
"""Has a job done, of so many bytes; the future of it where that is not now."""


class Parts:
    """The parts of one folder: those of earlier runs, and those that this run puts there. `later` has a job
    done, with the patience that it is handed, now or on another thread, one begun after the other."""

    def __init__(self, ledger: Ledger, later: Later | None = None) -> None:
        self._ledger = ledger
        self._later = later or (lambda job, weight: job(ledger.patience))
        self._scratch = Scratch()
        self._units: dict[str, set[str]] = {}
        """Of each part's path, the units that are open."""
        self._writing: dict[str, Any] = {}

    def take_up(self, units: Iterable[Unit], *, only_look: bool = False) -> dict[str, list[Kept]]:
        """Rows that earlier runs left of open `units`, by unit: those of images that were answered
        whole, each row once. Parts of which nothing can be taken go, unless this is `only_look`."""
        units = [*units]
        wanted = {unit.name: unit.as_read for unit in units if is_kept(unit)}
        later = {(unit.name, unit.as_read) for unit in units if unit.limit is not None}
        found: dict[str, list[Kept]] = {}
        places: dict[str, list[np.ndarray]] = {}
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
            mine = {name: rows.filter(pc.equal(rows["unit"], name)) for name in sorted(live)}
            kept, _ = self._scratch.put([*mine.values()])
            for name, there in zip(mine, kept, strict=True):
                found.setdefault(name, []).append(there)
                places.setdefault(name, []).append(_places(mine[name]))
        whole = {name: self._whole_images(found[name], places[name]) for name in found}
        return {name: rows for name, rows in whole.items() if rows}

    def put(self, rows: Mapping[str, pa.Table], sources: Mapping[str, str]) -> dict[str, Kept]:
        """Write a part of rows of these units; where they lie, in memory no more."""
        said = {_FINGERPRINT: self._ledger.fingerprint, _SOURCES: json.dumps(sources)}
        kept, data = self._scratch.put([r.replace_schema_metadata(said) for r in rows.values()])
        path = f"{self._ledger.out.path}/{PARTS}{secrets.token_hex(8)}.part"
        fs = self._ledger.out.fs
        self._units[path] = set(sources)
        self._writing[path] = self._later(
            lambda patience: write_whole(fs, path, data, patience), data.size
        )
        return dict(zip(rows, kept, strict=True))

    def drop(self, unit: str) -> None:
        """The unit is committed: parts that hold rows of it alone are not needed any more."""
        for path, units in [*self._units.items()]:
            units.discard(unit)
            if not units:
                self._later(partial(self._delete_written, path, self._writing.pop(path, None)), 0)
                del self._units[path]

    def _delete_written(self, path: str, writing: Any, patience: Patience) -> None:
        if writing is not None:
            wait([writing])
        patience.keep_trying(lambda: delete_file(self._ledger.out.fs, path))

    def _whole_images(self, parts: list[Kept], places: list[np.ndarray]) -> list[Kept]:
        """The rows of images of which all rows are there, each row once."""
        ordinals, positions, siblings = np.concatenate(places, axis=1)
        _, first = np.unique(np.stack([ordinals, positions]), axis=1, return_index=True)
        _, image, count = np.unique(ordinals[first], return_inverse=True, return_counts=True)
        stays = np.zeros(len(ordinals), bool)
        stays[first[count[image] == siblings[first]]] = True
        bounds = np.cumsum([part.num_rows for part in parts])[:-1]
        left = []
        for part, mask in zip(parts, np.split(stays, bounds), strict=True):
            if mask.all():
                left.append(part)
            elif mask.any():
                left += self._scratch.put([part.read().filter(pa.array(mask))])[0]
        return [part for part in left if part.num_rows]

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
        return rows

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


def _places(rows: pa.Table) -> np.ndarray:
    """int64 `[3, rows]`: each one's image, its place among that image's rows, and how many those are."""
    names = ("ordinal", "position", "siblings")
    return np.stack([rows[name].to_numpy().astype(np.int64) for name in names])
