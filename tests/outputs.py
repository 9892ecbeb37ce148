"""Answer rows as they reach the committer, and output folders as the tests look at them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llava_batch.driver.same_run import VERSION, fingerprint_in
from llava_batch.generate.answer_rows import generated_schema
from llava_batch.storage import locate
from llava_batch.unit import Unit
from llava_batch.write.ledger import Ledger

EMPTY = pa.schema([])
SETTINGS = {"prompt": "x"}
RUN = {"model": "demo"}


def unit(name: str, **changes: Any) -> Unit:
    given = {"kind": "tar", "path": f"/in/{name}.tar", "shown": f"{name}.tar", "source": "1-1",
             "fs": pafs.LocalFileSystem()}  # fmt: skip
    return Unit(name=name, **(given | changes))


def answer(
    name: str,
    ordinal: int,
    position: int = 0,
    siblings: int = 1,
    *,
    key: str | None = None,
    text: str = "a thing",
    error: str | None = None,
) -> dict[str, Any]:
    """One answer row; with siblings, of the question numbered `position`."""
    key = str(ordinal) if key is None else key
    question = f"#{position}" if siblings > 1 else ""
    return {
        "id": f"{name}/{key}{question}",
        "unit": name,
        "key": key,
        "num_images": 1,
        "prompt": "p",
        "answer": None if error else text,
        "answer_tokens": None if error else 2,
        "prompt_tokens": None if error else 5,
        "status": "error" if error else "ok",
        "error_code": error,
        "ordinal": ordinal,
        "position": position,
        "siblings": siblings,
        "end": False,
    }


def end(name: str, count: int, code: str | None = None, message: str | None = None) -> dict:
    return {"unit": name, "ordinal": count, "position": 0, "siblings": 0, "end": True,
            "error_code": code, "error_message": message}  # fmt: skip


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=generated_schema([]))


def ledger_of(
    out: Path, *, overwrite: bool = False, format: str = "parquet", **more: Any
) -> Ledger:
    """The folder's ledger, loaded as a new run would."""
    return ledger_at(Ledger(locate(str(out)), format), overwrite=overwrite, **more)


def ledger_at(ledger: Ledger, *, overwrite: bool = False, **more: Any) -> Ledger:
    """The ledger, loaded, for a run of these settings."""
    settings = SETTINGS | more
    ledger.load(overwrite=overwrite)
    mark, as_before = fingerprint_in(
        ledger, settings, lambda version: settings, overwrite=overwrite
    )
    ledger.answer_under(settings, mark, VERSION, as_before=as_before)
    return ledger


def tables(out: Path) -> list[str]:
    """The tables that a reader who globs would find."""
    found = [*out.rglob("*.parquet"), *out.rglob("*.arrow")]
    return sorted(str(p.relative_to(out)) for p in found)


def answers_of(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()
