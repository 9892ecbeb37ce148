"""Runs over real files without Ray: an image's answer is what its bytes say, by name and content."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_batch.ids import image_id
from llava_batch.read import source
from llava_batch.read.find import find
from llava_batch.storage import locate
from llava_batch.unit import Unit
from llava_batch.write.changes import Work, compare
from llava_batch.write.committer import Committer
from tests.outputs import EMPTY, RUN, answer, end, ledger_of, table
from tests.shards import reading

BAD = b"bad"
"""An image that begins so is answered in error."""


def text_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def night(
    out: Path, *inputs: Path, prompt: str = "x", blocks: int | None = None, **how: Any
) -> Work:
    """One run over `inputs`, to its end or killed after so many `blocks`; `how` is what `compare` takes.

    What it was to read is in the work that it returns, images left out that an earlier run answered.
    """
    ledger = ledger_of(out, overwrite=how.get("overwrite", False), prompt=prompt)
    found = find(
        map(str, inputs),
        ledger.members,
        ledger.split_before,
        rows=ledger.rows,
        answered=ledger.units_of,
        output=locate(str(out)),
    )
    work = compare(ledger, found.units, **how)
    ledger.begin(work.todo, EMPTY)
    committer = Committer(ledger, work.todo, EMPTY, RUN)
    todo, _ = committer.take_up()
    for number, block in enumerate(_blocks(todo)):
        if number == blocks:
            return replace(work, todo=todo)
        committer.add(_answered(block))
    committer.close()
    ledger.finish()
    assert committer.tally.failed_units == {}
    return replace(work, todo=todo)


def answers(out: Path, *, limited: bool = True) -> dict[str, str]:
    """Each row's answer, or its error's code, by id; no id stands twice. Those of a `--limit` run too,
    or not."""
    rows: list[dict[str, Any]] = []
    for path in out.rglob("*.parquet"):
        found = pq.read_table(path, columns=["id", "answer", "error_code"])
        if limited or found.schema.metadata[b"llava_batch.complete"] == b"true":
            rows += found.to_pylist()
    by_id = {r["id"]: r["answer"] or r["error_code"] for r in rows}
    assert len(by_id) == len(rows), "an id stands twice"
    return by_id


def read_again(work: Work) -> dict[str, int]:
    """How many images of each unit a run was to read; -1 where all."""
    return {u.name: -1 if u.retry is None else len(u.retry) for u in work.todo}


def _blocks(units: list[Unit]) -> Iterator[pa.Table]:
    """What the read tasks give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            source, "_read_carefully", lambda unit, how, shared: source.read_blocks(unit, how)
        )
        for task in source.UnitSource(units, reading(), None).get_read_tasks(1):
            yield from task()


def _answered(block: pa.Table) -> pa.Table:
    rows = []
    for row in block.to_pylist():
        if row["end"]:
            rows.append(end(row["unit"], row["ordinal"], row["error_code"], row["error_message"]))
            continue
        data = row["images"][0] if row["images"] else b""
        error = row["error_code"] or ("image_unreadable" if data.startswith(BAD) else None)
        made = answer(row["unit"], row["ordinal"], key=row["key"], text=text_of(data), error=error)
        rows.append(made | {"id": image_id(row["unit"], row["key"], row["mark"])})
    return table(*rows)
