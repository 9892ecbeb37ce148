"""A Delta table, read and written by deltalake: one version a publication.

New rows alone are appended; where rows go too, it is one overwrite of what a predicate matches (`unit IN
(…)`, and this publication's own rows, for the library wants every new row to match it). Nothing is tried
again by the library itself: a commit that came first is a `Conflict`. The table's transaction identifiers
count the folder's publications.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from llava_batch.storage import locate, scrubbed, storage_options, without_credentials
from llava_batch.write.publish.change import (
    PUBLICATION_KEY,
    Change,
    Conflict,
    Newest,
    PublishFailed,
)
from llava_batch.write.publish.columns import PUBLICATION, UNIT_VERSION


class DeltaLake:
    """The Delta table at a path or URI, whose credentials go to the library alone."""

    def __init__(self, uri: str) -> None:
        bare = without_credentials(uri)
        at_home = urlsplit(bare).scheme in ("", "file")
        self.shown = f"delta:{bare.rstrip('/')}"
        self._uri = os.path.realpath(locate(uri).path) if at_home else bare.rstrip("/")
        self.place = f"delta:{self._uri}"
        self._given = uri
        self._table: Any = None

    def open(self) -> Newest | None:
        from deltalake import DeltaTable

        options = storage_options(self._given)
        with self._telling():
            self._table = None
            if not DeltaTable.is_deltatable(self._uri, storage_options=options):
                return None
            self._table = DeltaTable(self._uri, storage_options=options)
            said = self._table.history(1)[0]
            return Newest(
                version=str(self._table.version()),
                publication=said.get(PUBLICATION_KEY),
                schema=pa.schema(self._table.schema().to_arrow()),
            )

    def counts(self) -> Iterator[tuple[str | None, str | None, int]]:
        from deltalake import QueryBuilder

        asked = f"SELECT unit, {UNIT_VERSION}, count(*) AS n FROM t GROUP BY unit, {UNIT_VERSION}"
        with self._telling():
            found = QueryBuilder().register("t", self._table).execute(asked)
            for batch in found:
                rows = pa.record_batch(batch).to_pylist()
                yield from ((row["unit"], row[UNIT_VERSION], row["n"]) for row in rows)

    def commit(self, change: Change, rows: pa.RecordBatchReader) -> str:
        from deltalake import DeltaTable, write_deltalake

        with self._telling():
            options = storage_options(self._given)
            write_deltalake(
                self._uri if self._table is None else self._table,
                rows,
                storage_options=options,
                **self._how(change),
            )
            return str(DeltaTable(self._uri, storage_options=options).version())

    def _how(self, change: Change) -> dict[str, Any]:
        """The library's arguments for the change."""
        from deltalake import CommitProperties, Transaction, WriterProperties

        app = f"llava-batch-{change.folder}"
        count = 0 if self._table is None else self._table.transaction_version(app) or 0
        how: dict[str, Any] = {
            "writer_properties": WriterProperties(compression="ZSTD"),
            "commit_properties": CommitProperties(
                custom_metadata={**change.said, PUBLICATION_KEY: change.publication},
                app_transactions=[Transaction(app, count + 1)],
                max_commit_retries=0,
            ),
        }
        if self._table is None:
            return how | {"mode": "error"}
        if change.whole:
            return how | {"mode": "overwrite", "schema_mode": "overwrite"}
        if change.going:
            return how | {"mode": "overwrite", "predicate": _predicate(change)}
        return how | {"mode": "append"}

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """The library's errors, in a line."""
        from deltalake.exceptions import CommitFailedError

        try:
            yield
        except CommitFailedError as error:
            raise Conflict(self._said(error)) from None
        except Exception as error:
            if self._table is None and "already exists" in str(error):
                raise Conflict(self._said(error)) from error
            raise PublishFailed(self._said(error)) from error

    def _said(self, error: Exception) -> str:
        line = scrubbed(error, self._given)
        for secret in storage_options(self._given).values():
            line = line.replace(secret, "***") if len(secret) > 4 else line
        return line


def _predicate(change: Change) -> str:
    """Rows of the units that go, or of this publication."""
    units = ", ".join(_quoted(unit) for unit in change.going)
    return f"unit IN ({units}) OR {PUBLICATION} = {_quoted(change.publication)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
