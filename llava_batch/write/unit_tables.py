"""The tables of an output folder, one a unit: which there are, reading one, putting one in its place.

Knows names, sizes and times, and nothing of records: what a table counts for, the ledger says.
"""

import io
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from llava_batch.patience import Patience
from llava_batch.storage import Location, delete_file, read_bytes, whole_file, write_whole
from llava_batch.write.unit_table import decoded, encode, origin_of

_SUFFIXES = (".parquet", ".arrow")
LARGE_BYTES = 32 * 2**20
"""Of rows in memory, from which on a table is encoded and written a row group at a time."""


class UnitTables:
    """The tables in `out`, as last listed, read or written."""

    def __init__(self, out: Location, format: str, patience: Patience) -> None:
        self._out, self._format, self._patience = out, format, patience
        self.sizes: dict[str, int] = {}
        """Bytes of each file of the folder but those below `_manifest/`, by name."""
        self._times: dict[str, int] = {}
        self._hashes: dict[str, str] = {}

    def listed(self, files: Iterable[tuple[str, pafs.FileInfo]]) -> None:
        """Take these files, each with its name below the folder, for those there are."""
        self.sizes, self._times = {}, {}
        for name, info in files:
            self.sizes[name] = info.size
            self._times[name] = info.mtime_ns or 0

    def name(self, unit: str) -> str:
        return f"{unit}.{self._format}"

    def size(self, unit: str) -> int:
        """Bytes of the unit's table, as last seen or written."""
        return self.sizes[self.name(unit)]

    def hash(self, unit: str) -> str:
        """sha256 of the unit's table, as last read or written."""
        return self.hash_of(self.name(unit))

    def hash_of(self, name: str) -> str:
        """`hash` by the table's name."""
        return self._hashes[name]

    def written_ns(self, name: str) -> int:
        """When a table was written; 0 where it was not there, or the store tells no times."""
        return self._times.get(name, 0)

    def read(self, unit: str) -> pa.Table | None:
        """The unit's table, or None where there is none that reads."""
        return self.read_file(self.name(unit))

    def read_file(self, name: str) -> pa.Table | None:
        """The table of this name, in whatever format."""
        # All bytes first: what the storage does not give is raised, what does not parse is not there.
        data = self._patience.keep_trying(lambda: read_bytes(self._out.fs, self._path(name)))
        if data is None:
            return None
        self._hashes[name] = sha256(data).hexdigest()
        return decoded(data, name.rpartition(".")[2])

    def write(self, unit: str, table: pa.Table) -> None:
        """Put `table` in the place of the unit's at once."""
        self.took(unit, *self.put(unit, lambda: [table], self._patience, num_bytes=table.nbytes))

    def put(
        self,
        unit: str,
        tables: Callable[[], Iterable[pa.Table]],
        patience: Patience,
        *,
        num_bytes: int,
    ) -> tuple[int, str]:
        """Put one table in place at once, given in pieces of about `num_bytes` in all, once or again: serialised in memory
        where that is little, else a piece at a time. Its bytes and their sha256; `took` makes them known.
        On any thread."""
        path = self._path(self.name(unit))
        if num_bytes < LARGE_BYTES:
            sink = pa.BufferOutputStream()
            encode(sink, tables(), self._format)
            data = sink.getvalue()
            write_whole(self._out.fs, path, data, patience)
            return data.size, sha256(data).hexdigest()

        def stream() -> tuple[int, str]:
            with whole_file(self._out.fs, path, patience) as file:
                hashed = _Hashed(file)
                encode(hashed, tables(), self._format)
            return hashed.size, hashed.sha256.hexdigest()

        # Of an object store the one PUT at the end is tried again by itself.
        return patience.keep_trying(stream) if self._out.is_local else stream()

    def took(self, unit: str, size: int, hashed: str) -> None:
        """The unit's table was written, so large and of this sha256."""
        self.sizes[self.name(unit)] = size
        self._hashes[self.name(unit)] = hashed

    def delete(self, name: str, patience: Patience | None = None) -> None:
        patience = self._patience if patience is None else patience
        patience.keep_trying(lambda: delete_file(self._out.fs, self._path(name)))

    def drop(self, name: str) -> None:
        """Delete a table, and know of it no more."""
        self.delete(name)
        self.sizes.pop(name, None)

    def but(self, names: Iterable[str]) -> list[str]:
        """The names of the tables that there are beside these, sorted."""
        known = {*names}
        return sorted(n for n in self.sizes.keys() - known if n.endswith(_SUFFIXES))

    def origin(self, name: str) -> dict[str, str]:
        """What a table's footer says of its origin, by the short names; nothing where it is not ours."""
        return origin_of(self._out.fs, self._path(name))

    def has_good_row(self, path: str) -> bool:
        """Whether a row of the table or part at `path` has an answer."""
        data = self._patience.keep_trying(lambda: read_bytes(self._out.fs, path)) or b""
        table = decoded(data, path.rpartition(".")[2])
        return table is not None and pc.any(pc.equal(table["status"], "ok")).as_py() is True

    def _path(self, name: str) -> str:
        return f"{self._out.path}/{name}"


class _Hashed(io.RawIOBase):
    """A stream whose bytes are counted and hashed on their way to `file`."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.size = 0
        self.sha256 = sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size
