"""Before: what earlier runs made of an input, for whoever finds it again.

So that a unit keeps its name and its rows in every run, whatever is added beside it. Changes nothing.
"""

from collections.abc import Sequence
from functools import cached_property

from llava_batch.unit import Unit
from llava_batch.write.manifest import Manifest
from llava_batch.write.unit_tables import UnitTables


class Before:
    """What a folder knows of the inputs of its units."""

    def __init__(self, manifest: Manifest, tables: UnitTables) -> None:
        self._manifest, self._tables = manifest, tables

    def members(self, base: str) -> dict[str, Sequence[str]]:
        """Memberships fixed by earlier runs for the loose files of a folder, by unit name."""
        return {
            unit: membership.members
            for unit, membership in sorted(self._manifest.members.items())
            if unit.rpartition("-")[0] == base and membership.members
        }

    def rows(self, base: str) -> dict[str, tuple[int, int]]:
        """Which rows earlier runs gave to the units of a text table, by unit name."""
        return {
            unit: membership.rows
            for unit, membership in self._manifest.members.items()
            if unit.rpartition("-")[0] == base and membership.rows
        }

    def units_of(self, input: str) -> list[str]:
        """The units that were answered from what lies there."""
        return self._units_of.get(input, [])

    def split(self, whole: Unit) -> int | None:
        """By which rules the units of a shard were made, where it was answered as it is now: 0 where it
        was one unit, None where it was not. A table whose record a kill prevented counts too."""
        held = self._manifest.records.get(whole.name)
        if held is not None and (held.input, held.source) == (whole.input, whole.source):
            return 0
        rules = self._rules_of.get((whole.input, whole.source))
        name = self._tables.name(whole.name)
        if rules is None and held is None and name in self._tables.sizes:
            return 0 if self._tables.origin(name).get("source") == whole.source else None
        return rules

    @cached_property
    def _units_of(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for record in self._manifest.records.values():
            found.setdefault(record.input, []).append(record.unit)
        return found

    @cached_property
    def _rules_of(self) -> dict[tuple[str, str], int]:
        """The oldest rules by which an input was answered."""
        found: dict[tuple[str, str], int] = {}
        for record in self._manifest.records.values():
            key = record.input, record.source
            found[key] = min(record.rules, found.get(key, record.rules))
        return found
