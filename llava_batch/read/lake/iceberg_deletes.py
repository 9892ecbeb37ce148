"""Iceberg's row-level deletes: which rows of which data files they name.

Position deletes in Parquet files, and deletion vectors in Puffin files, which pyiceberg decodes. Each file of
deletes is read once, in the driver. Equality deletes are refused by name: pyiceberg does not apply them.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.errors import UsageError
from llava_batch.read.lake.table import Place
from llava_batch.unit import pack_rows

_READS_AT_ONCE = 16


def refuse_equality_deletes(place: Place, manifests: Iterable[Any], io: Any) -> None:
    from pyiceberg.manifest import DataFileContent, ManifestContent

    for manifest in manifests:
        if manifest.content != ManifestContent.DELETES:
            continue
        for entry in manifest.fetch_manifest_entry(io, discard_deleted=True):
            if entry.data_file.content == DataFileContent.EQUALITY_DELETES:
                raise UsageError(
                    f"--input {place.at.shown}: {entry.data_file.file_path} holds equality deletes, which "
                    "pyiceberg does not apply; have the table's writer rewrite its data files (compact it)"
                )


def deleted_rows(place: Place, tasks: list[Any], io: Any) -> dict[str, bytes]:
    """The deleted rows of each data file that has some, by its path."""
    deletes = {d.file_path: d for task in tasks for d in task.delete_files}
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        read = dict(
            zip(
                deletes,
                pool.map(lambda d: _deletes_in(place, d, io), deletes.values()),
                strict=True,
            )
        )
    found = {}
    for task in tasks:
        path = task.file.file_path
        rows = [read[d.file_path].get(path) for d in task.delete_files]
        if some := [r for r in rows if r is not None]:
            numbers = np.unique(np.concatenate(some))
            found[path] = pack_rows(numbers[numbers < task.file.record_count])
    return found


def _deletes_in(place: Place, file: Any, io: Any) -> dict[str, np.ndarray]:
    """The positions that one file of deletes names, by data file."""
    from pyiceberg.manifest import FileFormat
    from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
    from pyiceberg.table.puffin import PuffinFile

    with io.new_input(file.file_path).open() as opened:
        data = opened.read()
    if file.file_format == FileFormat.PUFFIN:
        vectors = deletion_vectors_from_puffin_file(PuffinFile(data))
        return {v.referenced_data_file: v.to_vector().to_numpy().astype(np.int64) for v in vectors}
    if file.file_format != FileFormat.PARQUET:
        raise UsageError(
            f"--input {place.at.shown}: {file.file_path} holds deletes as {file.file_format.value}, which "
            "is not read; have the table's writer rewrite its position deletes as Parquet"
        )
    table = pq.read_table(pa.BufferReader(data), columns=["file_path", "pos"])
    paths = table["file_path"].combine_chunks().dictionary_encode()
    numbers, codes = table["pos"].to_numpy(), paths.indices.to_numpy()
    return {path: numbers[codes == i] for i, path in enumerate(paths.dictionary.to_pylist())}
