"""Membership: which loose files a unit is made of, and what each was when it was looked at; or which rows
of a text table.

`_manifest/<unit>.members` is JSON: `{"input": …, "members": {name: [size, mtime_ns] or null}}`, or, by
versions before 0.2, a list of names. The stamps say what was answered exactly where `source_of` them
is the record's `source`; a kill between the two files leaves them apart, and then nobody knows.
Of a text table it is `{"input": …, "rows": [first, one past the last]}`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_batch.unit import Names, Stamp, Stamps, Unit, source_of


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The files of one unit, in order, or its rows."""

    input: str | None
    members: Sequence[str]
    stamps: Sequence[Stamp | None]
    """None where the file was not there, and of all where an old file does not say."""
    rows: tuple[int, int] | None = None

    @classmethod
    def of(cls, unit: Unit) -> "Membership":
        return cls(input=unit.input, members=unit.members, stamps=unit.stamps, rows=unit.numbers)

    @property
    def source(self) -> str:
        return source_of(self.members, self.stamps)

    def to_json(self) -> bytes:
        if self.rows is not None:
            return json.dumps({"input": self.input, "rows": self.rows}).encode()
        stamps = dict(zip(self.members, self.stamps, strict=True))
        return json.dumps({"input": self.input, "members": stamps}).encode()

    @classmethod
    def from_json(cls, data: bytes | None) -> "Membership":
        """What a file of members says; no members where it was cut."""
        try:
            said = json.loads(data or b"[]")
        except ValueError:
            said = []
        return cls.of_said(said)

    @classmethod
    def of_said(cls, said: Any) -> "Membership":
        """What the JSON of a file of members says."""
        if isinstance(said, list):
            return cls(input=None, members=tuple(said), stamps=(None,) * len(said))
        if "rows" in said:
            return cls(input=said["input"], members=(), stamps=(), rows=tuple(said["rows"]))
        stamps = Stamps(stamp and (stamp[0], stamp[1]) for stamp in said["members"].values())
        return cls(input=said["input"], members=Names(said["members"]), stamps=stamps)
