"""What the folder remembers of its publications. The table itself says what is in it; this saves reading it.

    OUT/_manifest/_folder.json            {"folder": a random id}, by which its rows are known in a table
    OUT/_manifest/_published-<hash>.json  {"table": …, "publication": …, "units": {unit: [unit_version, rows]}}

The second is written before a commit, and says what the table holds exactly where the table's newest commit
is of that publication. Wherever it is not (a kill in between, another writer) it says nothing.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from llava_batch.storage import list_files, read_bytes, write_whole
from llava_batch.write.ledger import Ledger
from llava_batch.write.publish.change import LakeTable

Units = dict[str, tuple[str, int]]
"""By a unit's name, its `unit_version` and number of rows."""


def folder_id(ledger: Ledger) -> str | None:
    """The folder's id in the tables that it publishes; None where it has published nothing."""
    said = _read(ledger, "_folder.json")
    return str(said["folder"]) if said else None


def make_folder_id(ledger: Ledger) -> str:
    """The folder's id, made if it has none."""
    known = folder_id(ledger)
    if known is None:
        known = secrets.token_hex(6)
        _write(ledger, "_folder.json", {"folder": known})
    return known


def read_note(ledger: Ledger, table: LakeTable, publication: str | None) -> Units | None:
    """What `table` holds, if `publication` is the one that the note is of."""
    said = _read(ledger, _name(table))
    if not said or publication is None or said.get("publication") != publication:
        return None
    return {unit: (version, rows) for unit, (version, rows) in said["units"].items()}


def write_note(ledger: Ledger, table: LakeTable, publication: str, units: Units) -> None:
    """Say what `table` will hold after `publication`."""
    said = {"table": table.shown, "publication": publication, "units": units}
    _write(ledger, _name(table), said)


def published_tables(ledger: Ledger) -> set[str]:
    """The tables that the folder was published into, as `LakeTable.shown`."""
    out = ledger.out
    files = ledger.patience.keep_trying(lambda: list_files(out.child("_manifest")))
    names = [f.base_name for f in files if f.base_name.startswith("_published-")]
    return {str(said["table"]) for said in (_read(ledger, name) for name in names) if said}


def _name(table: LakeTable) -> str:
    return f"_published-{hashlib.sha256(table.place.encode()).hexdigest()[:12]}.json"


def _read(ledger: Ledger, name: str) -> dict[str, Any] | None:
    out = ledger.out
    data = ledger.patience.keep_trying(lambda: read_bytes(out.fs, f"{out.path}/_manifest/{name}"))
    try:
        said = json.loads(data or b"null")
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _write(ledger: Ledger, name: str, said: Mapping[str, Any]) -> None:
    path = f"{ledger.out.path}/_manifest/{name}"
    write_whole(ledger.out.fs, path, json.dumps(said).encode(), ledger.patience)
