"""Folders of answers as runs leave them, tables of the lake made of them, and what those tables hold."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llava_batch.write.committer import Committer
from llava_batch.write.ledger import Ledger
from llava_batch.write.publish.publish import Published, publish
from llava_batch.write.publish.target import lake_table
from tests.outputs import EMPTY, RUN, answer, end, ledger_of, table, unit

KINDS = ("delta", "iceberg")


def target(kind: str, folder: Path, name: str = "answers") -> str:
    """What `--publish` is given for a table below `folder`."""
    return f"delta:{folder / name}" if kind == "delta" else f"iceberg:night.lake.{name}"


def configure(folder: Path) -> dict[str, str]:
    """A catalog `night` in a SQLite file, by pyiceberg's own variables."""
    return {
        "PYICEBERG_CATALOG__NIGHT__TYPE": "sql",
        "PYICEBERG_CATALOG__NIGHT__URI": f"sqlite:///{folder}/catalog.db",
        "PYICEBERG_CATALOG__NIGHT__WAREHOUSE": f"file://{folder}/warehouse",
    }


def answer_unit(
    out: Path, name: str, *texts: str | None, source: str = "1-1", **how: Any
) -> Ledger:
    """One run that answers the unit: a row for each text, in error where it is None."""
    ledger = ledger_of(out, **how)
    one = unit(name, source=source)
    ledger.begin([one], EMPTY)
    rows = [
        answer(name, n, text=text or "", error=None if text else "image_missing")
        for n, text in enumerate(texts)
    ]
    Committer(ledger, [one], EMPTY, RUN).add(table(*rows, end(name, len(texts))))
    return ledger_of(out, **{n: v for n, v in how.items() if n != "overwrite"})


def bring(out: Path, to: str, *, overwrite: bool = False, **settings: Any) -> Published:
    """Publish the folder, as a new process would."""
    ledger = ledger_of(out, **settings)
    said = {"llava_batch.fingerprint": ledger.fingerprint}
    return publish(ledger, lake_table(to), said=said, overwrite=overwrite)


def rows(to: str, version: str | None = None) -> list[dict[str, Any]]:
    """All rows of the table by its own library, in the order of their ids; none where it is not there."""
    kind, _, name = to.partition(":")
    read = _delta if kind == "delta" else _iceberg
    found = read(name, version)
    return [] if found is None else sorted(found.to_pylist(), key=lambda row: row["id"])


def answers(to: str, version: str | None = None) -> dict[str, str | None]:
    """Each row's answer by its id; no id stands twice."""
    found = rows(to, version)
    by_id = {row["id"]: row["answer"] or row["error_code"] for row in found}
    assert len(by_id) == len(found), "an id stands twice"
    return by_id


def folder_answers(out: Path) -> dict[str, str | None]:
    """Each answer by its id, in the folder's own committed tables."""
    ledger = ledger_of(out)
    found: dict[str, str | None] = {}
    for record in ledger.standing_records():
        one = ledger.read_table(record.unit)
        assert one is not None
        found |= {row["id"]: row["answer"] or row["error_code"] for row in one.to_pylist()}
    return found


def versions(to: str) -> int:
    """How many commits the table has had."""
    kind, _, name = to.partition(":")
    if kind == "delta":
        from deltalake import DeltaTable

        return DeltaTable(name).version() + 1
    return len(_iceberg_table(name).metadata.metadata_log) + 1


def _delta(path: str, version: str | None) -> pa.Table | None:
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(path):
        return None
    return DeltaTable(path, version=None if version is None else int(version)).to_pyarrow_table()


def _iceberg_table(name: str) -> Any:
    from pyiceberg.catalog import load_catalog

    catalog, *identifier = name.split(".")
    return load_catalog(catalog).load_table(tuple(identifier))


def _iceberg(name: str, version: str | None) -> pa.Table | None:
    from pyiceberg.exceptions import NoSuchTableError

    try:
        found = _iceberg_table(name)
    except NoSuchTableError:
        return None
    return found.scan(snapshot_id=None if version is None else int(version)).to_arrow()


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for tables, with the catalog `night`."""
    folder = tmp_path / "lake"
    folder.mkdir()
    for name, value in configure(folder).items():
        monkeypatch.setenv(name, value)
    from pyiceberg import catalog

    # It reads its configuration once a process.
    monkeypatch.setattr(catalog, "_ENV_CONFIG", catalog.Config())
    return folder
