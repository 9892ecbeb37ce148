"""What `_manifest/` says in JSON: `Record`, of one committed unit; `Held`, of how all were answered.

Data and its two directions, nothing more; `ledger.py` knows when they are written and what they mean.
"""

import base64
import hashlib
import json
import sys
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One committed unit, as `_manifest/<unit>.json` says it, or the index. There may be a million."""

    unit: str
    table: str
    table_bytes: int
    fingerprint: str
    input: str
    source: str
    rows: int
    images: int
    errors: dict[str, int] = field(default_factory=dict)
    rules: int = 1
    """By which rules its rows were told apart and named; see `Unit.rules`. 0.1.0 wrote none down."""
    table_hash: str = ""
    """sha256 of the table's bytes; empty where the version that wrote it kept none."""
    deleted: str = ""
    """Of a lake table's file: the rows that were deleted when it was answered, `Unit.deleted` in base 64."""

    @property
    def digest(self) -> str:
        """Another one wherever the unit's rows are others."""
        said = self.table_hash.encode() or self.to_json()
        return hashlib.sha256(said).hexdigest()[:16]

    def to_json(self) -> bytes:
        return (json.dumps(self.said(), indent=1, sort_keys=True) + "\n").encode()

    def said(self) -> dict[str, Any]:
        """What stands in the JSON."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v for name, v in said.items() if name != "deleted" or v}

    @property
    def deleted_rows(self) -> bytes:
        return base64.b64decode(self.deleted)

    @classmethod
    def from_json(cls, data: bytes | None) -> "Record | None":
        """The record in `data`, or None where there is none that this version knows."""
        try:
            said = json.loads(data or b"null")
        except ValueError:
            return None
        return cls.of(said)

    @classmethod
    def of(cls, said: Any) -> "Record | None":
        """The record that `said` it, or None where that is none that this version knows."""
        try:
            return cls(**said | {
                "fingerprint": sys.intern(said["fingerprint"]),
                "rows": _same(said["rows"]),
                "images": _same(said["images"]),
                "errors": _same_counts(said.get("errors", {})),
            })  # fmt: skip
        except (TypeError, KeyError, AttributeError):
            return None


@lru_cache(4096)
def _same(number: int) -> int:
    """One object for all equal numbers: units of one size are many."""
    return number


def _same_counts(errors: dict[str, int]) -> dict[str, int]:
    """One dictionary for all equal ones, which nobody changes."""
    return _counts(tuple(errors.items()))


@lru_cache(4096)
def _counts(items: tuple[tuple[str, int], ...]) -> dict[str, int]:
    return dict(items)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What `_manifest/_job.json` says: how all tables of the folder were answered."""

    format: str
    fingerprint: str
    settings: dict[str, Any]
    version: int
    """Of the rules that the settings were written down by; see `driver.same_run`."""
    keep: pa.Schema
    recasting: bool = False
    """Whether a run was killed while it gave kept columns other types."""

    def to_json(self) -> bytes:
        said: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "format": self.format,
            "keep": base64.b64encode(self.keep.serialize().to_pybytes()).decode(),
            "settings": self.settings,
            "settings_version": self.version,
        }
        if self.recasting:
            said["recasting"] = True
        return (json.dumps(said, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Held":
        said = json.loads(data)
        return cls(
            format=said["format"],
            fingerprint=said["fingerprint"],
            settings=said["settings"],
            version=said.get("settings_version", 1),
            keep=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(said["keep"]))),
            recasting=said.get("recasting", False),
        )
