"""A lake table: where it stands, as of when it is read, and what the three kinds share.

A table is opened once, in the driver: the snapshot is fixed there, and with it the files, their schema and
which of their rows are deleted; all of it goes to the workers in the units. A commit during the run
changes nothing. What a table's library raises is told in a line.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from llava_batch.errors import UsageError, first_line
from llava_batch.read.image_column import find_image_column, find_key_column, names_images
from llava_batch.read.reading import Kind, Reading
from llava_batch.read.table_rows import Names, TableRows
from llava_batch.read.uris import refuse_the_web
from llava_batch.storage import Location, uri_of
from llava_batch.unit import TableFile, Unit, unpack_rows

INSTALL = "pip install 'llava-batch[lake]'"


@dataclass(frozen=True, kw_only=True)
class AsOf:
    """How the job reads its tables. `columns` are those that it asks for by name beside the image and the
    key; None: any."""

    snapshot: int | None = None
    image_column: str | None = None
    key_column: str | None = None
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A table that was found: its kind, its folder (or its name in a catalog), its name in ids."""

    kind: str
    at: Location
    name: str


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A table as of one snapshot; `snapshot` is None where it has none yet."""

    place: Place
    snapshot: int | None
    units: list[Unit] = field(default_factory=list)


@contextmanager
def the_library(place: Place) -> Iterator[None]:
    """Refuse the table in a line where its library is not there, or cannot read it.

    Raises:
        UsageError: with what the library said.
    """
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"--input {place.at.shown}: a {place.kind} table, and {error.name} is not installed; {INSTALL}"
        ) from None
    except (OSError, MemoryError, UsageError):
        raise
    except Exception as error:  # noqa: BLE001 a library's own, of many bases
        what = (
            f"the {place.kind} table cannot be read ({type(error).__name__}: {first_line(error)})"
        )
        raise UsageError(
            f"--input {place.at.shown}: {what}; check the path and --snapshot"
        ) from None


def table_uri(at: Location) -> str:
    """A table's folder as its library wants it.

    Raises:
        UsageError: a store that the libraries do not know.
    """
    if at.is_local:
        return os.path.realpath(at.path)
    scheme = {"s3": "s3", "gcs": "gs", "abfs": "abfss"}.get(at.fs.type_name)
    if scheme is None:
        raise UsageError(
            f"--input {at.shown}: a table of the lake is read from a local disk, s3://, gs:// or abfss://; "
            "copy it to one of them"
        )
    return f"{scheme}://{at.path}"


def s3_options(fs: pafs.FileSystem) -> dict[str, str]:
    """The credentials and the endpoint that an S3 file system carries, as pyarrow pickles them: keys are
    its own names, empty ones left out. Of any other store nothing: its library asks the usual places."""
    if not isinstance(fs, pafs.S3FileSystem):
        return {}
    carried = fs.__reduce__()[1][0]
    names = ("access_key", "secret_key", "session_token", "region", "endpoint_override", "scheme")
    options = {name: str(carried[name]) for name in names if carried.get(name)}
    endpoint = options.get("endpoint_override", "")
    if endpoint and "://" not in endpoint:
        options["endpoint_override"] = f"{options.get('scheme', 'https')}://{endpoint}"
    return options


def object_store_options(fs: pafs.FileSystem) -> dict[str, str]:
    """`s3_options` by the names that deltalake and pylance know."""
    given = s3_options(fs)
    names = {"access_key": "aws_access_key_id", "secret_key": "aws_secret_access_key",
             "session_token": "aws_session_token", "region": "aws_region",
             "endpoint_override": "aws_endpoint"}  # fmt: skip
    options = {ours: given[name] for name, ours in names.items() if name in given}
    if options.get("aws_endpoint", "").startswith("http://"):
        options["allow_http"] = "true"
    return options


def refuse_columns(kind: Kind, unit: Unit, reading: Reading) -> None:
    """Refuse a table without the image column or the key column that is asked for, or with images on
    the web where that is not allowed."""
    schema = kind.columns(unit)
    assert schema is not None
    image = find_image_column(schema, reading.image_column, unit.shown)
    if reading.key_column is not None:
        find_key_column(schema, reading.key_column, unit.shown)
    if names_images(schema.field(image).type):
        refuse_the_web(kind.rows(unit, reading), reading, unit.shown)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is read of a table's file: `columns` of its schema, and what makes rows of them."""

    columns: list[str]
    rows_of: TableRows
    names: Names

    @classmethod
    def of(
        cls, schema: pa.Schema, unit: Unit, reading: Reading, root: str | None = None
    ) -> "Wanted":
        """`root` is the table's folder, where relative paths start; None: as the unit has it."""
        image = find_image_column(schema, reading.image_column, unit.shown)
        key = reading.key_column and find_key_column(schema, reading.key_column, unit.shown)
        asked = dict.fromkeys((image, key, *reading.columns, "error_message"))
        inside = (
            unit.name.removeprefix(f"{unit.id_base}/") + "/" if unit.id_base != unit.name else ""
        )
        names = Names(key, unit.retry or frozenset(), number_prefix=inside)
        return cls(
            columns=[name for name in asked if name is not None and name in schema.names],
            rows_of=TableRows(
                image=image,
                names=names,
                max_image_bytes=reading.max_image_bytes,
                root=reading.image_root or root or uri_of(unit.fs, unit.path),
            ),
            names=names,
        )


def live_rows(numbers: np.ndarray, deleted: np.ndarray) -> np.ndarray:
    """Which of the rows of these numbers are not deleted, as a mask."""
    return ~np.isin(numbers, deleted, assume_unique=True)


def of_table(unit: Unit) -> TableFile:
    """The table's file that a unit of a table is."""
    assert unit.of_table is not None
    return unit.of_table


def num_live(unit: Unit) -> int | None:
    """The unit's rows that are not deleted; None where the table does not say how many there are."""
    file = of_table(unit)
    return None if file.num_rows is None else file.num_rows - len(unpack_rows(file.deleted))
