"""An Iceberg table, read and written by pyiceberg: one commit to its catalog a publication.

`CATALOG` is one of pyiceberg's own configuration (`~/.pyiceberg.yaml`, `PYICEBERG_CATALOG__…`). Where rows
go, pyiceberg writes up to three snapshots (without the rows that go, and with the new ones) and one
commit brings them all: who reads the table sees the last, or the one before them all. Its own retries are
turned off: they would append a second time what came before.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from llava_batch.errors import UsageError, first_line
from llava_batch.write.publish.change import (
    PUBLICATION_KEY,
    Change,
    Conflict,
    Newest,
    PublishFailed,
)
from llava_batch.write.publish.columns import UNIT_VERSION, is_held

_PROPERTIES = {
    "commit.retry.num-retries": "0",
    "write.target-file-size-bytes": str(256 * 2**20),  # of Arrow in memory, as pyiceberg counts
    "write.parquet.compression-codec": "zstd",
}
_FROM_ENVIRONMENT = {
    "s3.access-key-id": ("AWS_ACCESS_KEY_ID",),
    "s3.secret-access-key": ("AWS_SECRET_ACCESS_KEY",),
    "s3.session-token": ("AWS_SESSION_TOKEN",),
    "s3.region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "s3.endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
}


class Iceberg:
    """The Iceberg table `CATALOG.NAMESPACE.TABLE`; the namespace may have several parts.

    Raises:
        UsageError: the name has fewer than three parts.
    """

    def __init__(self, name: str) -> None:
        catalog, *identifier = name.split(".")
        if len(identifier) < 2 or not all((catalog, *identifier)):
            raise UsageError(
                f"--publish iceberg:{name}: give iceberg:CATALOG.NAMESPACE.TABLE, CATALOG as "
                "pyiceberg's own configuration has it"
            )
        self.shown = self.place = f"iceberg:{name}"
        self._name = catalog
        self._identifier = tuple(identifier)
        self._catalog: Any = None
        self._table: Any = None

    def open(self) -> Newest | None:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

        with self._telling():
            self._table = None
            if self._catalog is None:
                self._catalog = load_catalog(self._name, **_storage_properties(self._name))
            try:
                self._table = self._catalog.load_table(self._identifier)
            except (NoSuchTableError, NoSuchNamespaceError):
                return None
            snapshot = self._table.current_snapshot()
            summary = None if snapshot is None else snapshot.summary
            return Newest(
                version=self._version(),
                publication=None if summary is None else summary.get(PUBLICATION_KEY),
                schema=self._table.schema().as_arrow(),
            )

    def counts(self) -> Iterator[tuple[str | None, str | None, int]]:
        with self._telling():
            scan = self._table.scan(selected_fields=("unit", UNIT_VERSION))
            for batch in scan.to_arrow_batch_reader():
                pairs = pa.Table.from_batches([batch]).group_by(["unit", UNIT_VERSION])
                for row in pairs.aggregate([([], "count_all")]).to_pylist():
                    yield row["unit"], row[UNIT_VERSION], row["count_all"]

    def commit(self, change: Change, rows: pa.RecordBatchReader) -> str:
        said = {**change.said, PUBLICATION_KEY: change.publication}
        with self._telling(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a delete matched nothing, say
            if self._table is None:
                self._create(change, rows, said)
            else:
                with self._table.transaction() as transaction:
                    self._change(transaction, change, rows, said)
            self._table = self._catalog.load_table(self._identifier)
            return self._version()

    def _create(self, change: Change, rows: pa.RecordBatchReader, said: dict[str, str]) -> None:
        self._catalog.create_namespace_if_not_exists(self._identifier[:-1])
        transaction = self._catalog.create_table_transaction(
            self._identifier, schema=change.schema, properties=_PROPERTIES
        )
        transaction.append(rows, snapshot_properties=said)
        transaction.commit_transaction()

    def _change(
        self, transaction: Any, change: Change, rows: pa.RecordBatchReader, said: dict[str, str]
    ) -> None:
        from pyiceberg import expressions

        going: Any = expressions.AlwaysTrue()
        if not change.whole:
            make: Any = expressions.In
            going = make("unit", change.going)
        if change.whole:
            _set_schema(transaction, self._table.schema().as_arrow(), change.schema)
        if not change.adds:
            transaction.delete(going, snapshot_properties=said)
        elif change.whole or change.going:
            transaction.overwrite(rows, going, snapshot_properties=said)
        else:
            transaction.append(rows, snapshot_properties=said)

    def _version(self) -> str:
        snapshot = self._table.current_snapshot()
        return "none" if snapshot is None else str(snapshot.snapshot_id)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """The library's errors, in a line."""
        from pyiceberg.exceptions import (
            CommitFailedException,
            TableAlreadyExistsError,
            ValidationException,
        )

        try:
            yield
        except (CommitFailedException, TableAlreadyExistsError, ValidationException) as error:
            raise Conflict(self._said(error)) from None
        except Exception as error:
            raise PublishFailed(self._said(error)) from error

    def _said(self, error: Exception) -> str:
        line = first_line(error)
        held = {} if self._catalog is None else self._catalog.properties
        for secret in {**_storage_properties(self._name), **held}.values():
            line = line.replace(secret, "***") if len(secret) > 4 else line
        return line


def _set_schema(transaction: Any, held: pa.Schema, wanted: pa.Schema) -> None:
    """Columns that `wanted` does not have so go, with all rows in the same commit; new ones come."""
    stay = {field.name for field in wanted if is_held(held, field)}
    if stay == set(wanted.names) == set(held.names):
        return
    with transaction.update_schema(allow_incompatible_changes=True) as update:
        for name in held.names:
            if name not in stay:
                update.delete_column(name)
    with transaction.update_schema() as update:
        update.union_by_name(wanted)


def _storage_properties(catalog: str) -> dict[str, str]:
    """The usual variables, where the catalog's own configuration says nothing of them."""
    from pyiceberg.utils.config import Config

    said = Config().get_catalog_config(catalog) or {}
    if any(name.startswith("s3.") for name in said):
        return {}
    found = {
        key: next((os.environ[n] for n in names if os.environ.get(n)), None)
        for key, names in _FROM_ENVIRONMENT.items()
    }
    return {key: value for key, value in found.items() if value}
