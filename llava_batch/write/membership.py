"""Membership: which loose files a unit is made of, and what each was when it was looked at.

`_manifest/<unit>.members` is JSON: `{"input": …, "members": {name: [size, mtime_ns] or null}}`, or, by
versions before 0.2, a list of names. The stamps say what was answered exactly where `source_of` them
is the record's `source`; a kill between the two files leaves them apart, and then nobody knows.
"""

import json
from dataclasses import dataclass

from llava_batch.unit import Stamp, Unit, source_of


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The files of one unit, in order."""

    input: str | None
    members: tuple[str, ...]
    stamps: tuple[Stamp | None, ...]
    """None where the file was not there, and of all where an old file does not say."""

    @classmethod
    def of(cls, unit: Unit) -> "Membership":
        return cls(input=unit.input, members=unit.members, stamps=unit.stamps)

    @property
    def source(self) -> str:
        return source_of(self.members, self.stamps)

    def to_json(self) -> bytes:
        stamps = dict(zip(self.members, self.stamps, strict=True))
        return json.dumps({"input": self.input, "members": stamps}).encode()

    @classmethod
    def from_json(cls, data: bytes | None) -> "Membership":
        """What a file of members says; no members where it was cut."""
        try:
            said = json.loads(data or b"[]")
        except ValueError:
            said = []
        if isinstance(said, list):
            return cls(input=None, members=tuple(said), stamps=(None,) * len(said))
        stamps = tuple(stamp and (stamp[0], stamp[1]) for stamp in said["members"].values())
        return cls(input=said["input"], members=tuple(said["members"]), stamps=stamps)
