"""Lake tables for the tests: what their own libraries write, and deletes built to the formats' specifications,
which those libraries read and do not write."""

import json
import os
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.shards import picture

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_DELTA_MAGIC = 1681511377
_ICEBERG_MAGIC = b"\xd1\xd3\x39\x64"


def images(*numbers: int, **columns: Any) -> pa.Table:
    """A table of pictures by key, with a text and other columns beside them."""
    return pa.table(
        {
            "name": [f"k{n}" for n in numbers],
            "image": pa.array([picture(n) for n in numbers], pa.binary()),
            "caption": [f"picture {n}" for n in numbers],
        }
        | columns
    )


class DeltaLog:
    """A Delta table written by hand: Parquet files, and commits in `_delta_log/`."""

    def __init__(self, folder: Path, fields: Sequence[Mapping[str, Any]], *, partitioned: Sequence[str] = (),
                 configuration: Mapping[str, str] = {}) -> None:  # fmt: skip
        self.folder = folder
        self.version = -1
        (folder / "_delta_log").mkdir(parents=True)
        features = ["deletionVectors", "columnMapping"]
        schema = json.dumps({"type": "struct", "fields": list(fields)})
        self.commit(
            {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features,
                          "writerFeatures": features}},
            {"metaData": {"id": str(uuid.uuid4()), "format": {"provider": "parquet", "options": {}},
                          "schemaString": schema, "partitionColumns": list(partitioned),
                          "configuration": dict(configuration), "createdTime": 1}},
        )  # fmt: skip

    def commit(self, *actions: Mapping[str, Any]) -> None:
        self.version += 1
        text = "\n".join(json.dumps(action) for action in actions)
        (self.folder / "_delta_log" / f"{self.version:020}.json").write_text(text)

    def write(self, path: str, table: pa.Table, **how: Any) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, self.folder / path, **how)

    def add(self, path: str, *, encoded: str | None = None, vector: Mapping[str, Any] | None = None,
            partition: Mapping[str, str | None] = {}) -> dict[str, Any]:  # fmt: skip
        """The action that adds a file which was written; `encoded` is its path in the log."""
        number = pq.read_metadata(self.folder / path).num_rows
        said: dict[str, Any] = {
            "path": encoded or path,
            "partitionValues": dict(partition),
            "size": os.path.getsize(self.folder / path),
            "modificationTime": 1,
            "dataChange": True,
            "stats": json.dumps({"numRecords": number}),
        }
        return {"add": said | ({"deletionVector": dict(vector)} if vector else {})}

    def remove(self, path: str, vector: Mapping[str, Any] | None = None) -> dict[str, Any]:
        said: dict[str, Any] = {"path": path, "deletionTimestamp": 2, "dataChange": True}
        return {"remove": said | ({"deletionVector": dict(vector)} if vector else {})}

    def inline(self, rows: Sequence[int]) -> dict[str, Any]:
        """A deletion vector that stands in the log itself."""
        data = _delta_vector(rows)
        return {"storageType": "i", "pathOrInlineDv": z85(data + b"\0" * (-len(data) % 4)),
                "sizeInBytes": len(data), "cardinality": len(rows)}  # fmt: skip

    def in_file(self, rows: Sequence[int]) -> dict[str, Any]:
        """A deletion vector in a file beside the data."""
        data, ident = _delta_vector(rows), uuid.uuid4()
        whole = b"\x01" + struct.pack(">i", len(data)) + data + struct.pack(">I", zlib.crc32(data))
        (self.folder / f"deletion_vector_{ident}.bin").write_bytes(whole)
        return {"storageType": "u", "pathOrInlineDv": z85(ident.bytes), "offset": 1,
                "sizeInBytes": len(data), "cardinality": len(rows)}  # fmt: skip


def field(name: str, kind: Any, **metadata: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": True, "metadata": metadata}


def mapped(name: str, kind: Any, number: int, physical: str) -> dict[str, Any]:
    """A field that stands in the files under another name."""
    prefix = "delta.columnMapping"
    return field(name, kind, **{f"{prefix}.id": number, f"{prefix}.physicalName": physical})


IMAGE_FIELDS = [field("name", "string"), field("image", "binary"), field("caption", "string")]


def z85(data: bytes) -> str:
    """ZeroMQ's base 85, five characters for four bytes."""
    out = ""
    for start in range(0, len(data), 4):
        value, five = int.from_bytes(data[start : start + 4], "big"), ""
        for _ in range(5):
            five, value = _Z85[value % 85] + five, value // 85
        out += five
    return out


def roaring64(rows: Sequence[int]) -> bytes:
    """The portable format of 64-bit Roaring bitmaps, which Delta and Iceberg share."""
    from pyroaring import BitMap64

    data: bytes = BitMap64(rows).serialize()
    return data


def _delta_vector(rows: Sequence[int]) -> bytes:
    return struct.pack("<I", _DELTA_MAGIC) + roaring64(rows)


def iceberg_catalog(folder: Path, name: str = "lake") -> Any:
    """A catalog in SQLite, its tables in a folder beside it."""
    from pyiceberg.catalog.sql import SqlCatalog

    folder.mkdir(parents=True, exist_ok=True)
    catalog = SqlCatalog(
        name, uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse"
    )
    catalog.create_namespace_if_not_exists("ns")
    return catalog


def folder_of(table: Any) -> Path:
    """Where an Iceberg table lies on this disk."""
    return Path(table.location().removeprefix("file://"))


def delete_positions(table: Any, positions: Mapping[str, Sequence[int]], *, puffin: bool = False,
                     equality: bool = False) -> Any:  # fmt: skip
    """Commit row-level deletes of these positions by data file, as the specification has them; returns
    the table as it is then. `equality` marks the file as one of equality deletes instead."""
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    path = f"{folder_of(table)}/data/deletes-{uuid.uuid4()}.{'puffin' if puffin else 'parquet'}"
    places: dict[str, Any] = {}
    if puffin:
        places = _write_puffin(path, positions)
    else:
        pairs = [(file, row) for file, rows in sorted(positions.items()) for row in sorted(rows)]
        columns = [pa.array([p[0] for p in pairs]), pa.array([p[1] for p in pairs], pa.int64())]
        fields = [
            _with_id("file_path", pa.string(), 2147483546),
            _with_id("pos", pa.int64(), 2147483545),
        ]
        pq.write_table(pa.table(columns, schema=pa.schema(fields)), path)
    size, total = os.path.getsize(path), sum(map(len, positions.values()))
    content = DataFileContent.EQUALITY_DELETES if equality else DataFileContent.POSITION_DELETES
    file = DataFile.from_args(
        _table_format_version=table.format_version,
        content=content,
        file_path=f"file://{path}",
        file_format=FileFormat.PUFFIN if puffin else FileFormat.PARQUET,
        partition=Record(),
        record_count=total,
        file_size_in_bytes=size,
        equality_ids=[1] if equality else None,
        **places,
    )
    file.spec_id = table.spec().spec_id
    return _commit_deletes(table, file)


def _with_id(name: str, kind: pa.DataType, ident: int) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"PARQUET:field_id": str(ident)})


def _write_puffin(path: str, positions: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """One blob of type deletion-vector-v1; returns what the manifest says of where it is."""
    ((data_file, rows),) = positions.items()
    body = _ICEBERG_MAGIC + roaring64(rows)
    blob = struct.pack(">I", len(body)) + body + struct.pack(">I", zlib.crc32(body))
    said = {"type": "deletion-vector-v1", "fields": [2147483645], "snapshot-id": -1, "sequence-number": -1,
            "offset": 4, "length": len(blob),
            "properties": {"referenced-data-file": data_file, "cardinality": str(len(rows))}}  # fmt: skip
    footer = json.dumps({"blobs": [said], "properties": {}}).encode()
    end = struct.pack("<i", len(footer)) + b"\0\0\0\0" + b"PFA1"
    Path(path).write_bytes(b"PFA1" + blob + b"PFA1" + footer + end)
    return {
        "referenced_data_file": data_file,
        "content_offset": 4,
        "content_size_in_bytes": len(blob),
    }


def _commit_deletes(table: Any, file: Any) -> Any:
    """A snapshot of the current one's manifests and one more, of deletes."""
    from pyiceberg.manifest import (
        ManifestContent,
        ManifestEntry,
        ManifestEntryStatus,
        ManifestWriterV2,
    )
    from pyiceberg.table.update.snapshot import _FastAppendFiles

    class Writer(ManifestWriterV2):
        def content(self) -> ManifestContent:
            return ManifestContent.DELETES

        @property
        def _meta(self) -> dict[str, str]:
            return super()._meta | {"content": "deletes"}

    class Deletes(_FastAppendFiles):
        def _manifests(self) -> list[Any]:
            output = self._transaction._table.io.new_output(
                f"{table.location()}/metadata/{uuid.uuid4()}.avro"
            )
            spec, schema = table.spec(), table.schema()
            entry = ManifestEntry.from_args(
                status=ManifestEntryStatus.ADDED, snapshot_id=self._snapshot_id, sequence_number=None,
                file_sequence_number=None, data_file=file,
            )  # fmt: skip
            with Writer(spec, schema, output, self._snapshot_id, "deflate") as writer:
                writer.add_entry(entry)
            return [writer.to_manifest_file(), *self._existing_manifests()]

    from pyiceberg.table.snapshots import Operation

    with table.transaction() as transaction:
        producer = Deletes(Operation.OVERWRITE, transaction, table.io)
        updates, requirements = producer._commit()
        transaction._apply(updates, requirements)
    return table.refresh()
