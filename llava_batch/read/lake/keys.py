"""Keys of a lake table: each row has one, and no two the same, before anything is answered.

With `--key-column` an id is `<table>/<key>`, so that a repeated key would be two rows of one id. The column is
read once more in the driver, of the whole snapshot, wherever a file of the table is to be answered; held
are 8 bytes a row (a hash; where two are equal the keys themselves decide).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from llava_batch.errors import UsageError
from llava_batch.ids import printable
from llava_batch.unit import Unit

Column = Callable[[Unit, str], Iterator[pa.Array]]
"""A unit's column, deleted rows left out."""


def refuse_repeated_keys(units: Sequence[Unit], column: str, read: Column) -> None:
    """Look through the key column of one table's units.

    Raises:
        UsageError: a row without a key, or a key that several rows have.
        OSError: the storage failed.
    """
    hashes = key_hashes(units, column, read)
    equal = hashes[1:][hashes[1:] == hashes[:-1]]
    if not len(equal):
        return
    wanted = set(equal.tolist())
    counts = Counter(key for key in _keys(units, column, read) if _hash(key) in wanted)
    key, count = counts.most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"--key-column {column}: {count} rows of {units[0].shown} and the table's other files have the "
            f"key {key}; give a column in which no value stands twice"
        )


def key_hashes(units: Iterable[Unit], column: str, read: Column) -> np.ndarray:
    """A hash of each row's key, as sorted uint64 `[rows]`.

    Raises:
        UsageError: a row without a key.
        OSError: the storage failed.
    """
    hashes = np.fromiter(map(_hash, _keys(units, column, read)), np.uint64)
    hashes.sort()
    return hashes


def are_among(keys: Sequence[str], hashes: np.ndarray) -> np.ndarray:
    """Whether each key, as an answers table has it, is one of those of `key_hashes`; bool `[keys]`."""
    wanted = np.fromiter(map(_hash, keys), np.uint64, len(keys))
    return np.isin(wanted, hashes)


def _keys(units: Iterable[Unit], column: str, read: Column) -> Iterator[str]:
    for unit in units:
        for values in read(unit, column):
            if values.null_count:
                raise UsageError(
                    f"--key-column {column}: {unit.shown} has rows without a key (null); give a column "
                    "that every row has"
                )
            yield from map(_text, values.to_pylist())


def _text(value: object) -> str:
    """The key as an id has it."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return printable(str(value))


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
