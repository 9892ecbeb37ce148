"""Runs over real files without Ray: an image's answer is what its bytes say, by name and content."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_batch.ids import answer_digest, image_id
from llava_batch.read import source
from llava_batch.read.find import find
from llava_batch.read.kinds import refuse_keys_of_tables
from llava_batch.read.lake.table import AsOf
from llava_batch.storage import locate
from llava_batch.tables import unpacked
from llava_batch.unit import Unit
from llava_batch.write.changes import Work, compare
from llava_batch.write.committer import Committer
from llava_batch.write.standing import Standing, end_move
from tests.outputs import EMPTY, RUN, answer, end, ledger_of, table
from tests.shards import reading

BAD = b"bad"
"""An image that begins so is answered in error."""


def text_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def night(
    out: Path, *inputs: Path, prompt: str = "x", blocks: int | None = None,
    key_column: str | None = None, tell: Callable[[Committer], None] = lambda committer: None, **how: Any,
) -> Work:  # fmt: skip
    """One run over `inputs`, to its end or killed after so many `blocks`; `how` is what `compare` takes.

    What it was to read is in the work that it returns, images left out that an earlier run answered.
    `tell` is given its committer; rows of tables go by `key_column`.
    """
    keyed = {} if key_column is None else {"key_column": key_column}
    ledger = ledger_of(out, overwrite=how.get("overwrite", False), prompt=prompt, **keyed)
    found = find(
        map(str, inputs),
        ledger.before.members,
        ledger.before.split,
        rows=ledger.before.rows,
        answered=ledger.before.units_of,
        output=locate(str(out)),
        as_of=AsOf(key_column=key_column),
    )
    if key_column is not None:
        refuse_keys_of_tables(found.units, found.units, key_column)
    work = compare(ledger, found.units, **how)
    ledger.begin(work.todo, EMPTY)
    end_move(ledger)
    anew = frozenset(unit.name for unit in work.todo if unit.retry is None)
    standing = Standing(ledger, work.standing, anew) if work.standing else None
    committer = Committer(ledger, work.todo, EMPTY, RUN, standing=standing)
    tell(committer)
    todo, _ = committer.take_up()
    for number, block in enumerate(_blocks(todo, key_column)):
        if number == blocks:
            return replace(work, todo=todo)
        committer.add(_answered(block, standing))
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


def _blocks(units: list[Unit], key_column: str | None) -> Iterator[pa.Table]:
    """What the read tasks give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            source, "_read_carefully", lambda unit, how, shared: source.read_blocks(unit, how)
        )
        for task in source.UnitSource(units, reading(key_column=key_column), None).get_read_tasks(
            1
        ):
            yield from map(unpacked, task())


def _answered(block: pa.Table, standing: Standing | None) -> pa.Table:
    rows = []
    for row in block.to_pylist():
        if row["end"]:
            rows.append(end(row["unit"], row["ordinal"], row["error_code"], row["error_message"]))
            continue
        data = row["images"][0] if row["images"] else b""
        about = {
            "id": image_id(row["id_base"], row["key"], row["mark"]),
            "image_sha256": hashlib.sha256(data).hexdigest(),
        }
        digest = answer_digest(about["id"], about["image_sha256"], [])
        if standing is not None and digest in standing.answers:
            copied = {"position": 0, "siblings": 0, "copied": True}
            rows.append({n: row[n] for n in ("unit", "ordinal", "end", "key")} | copied | about)
            continue
        error = row["error_code"] or ("image_unreadable" if data.startswith(BAD) else None)
        made = answer(row["unit"], row["ordinal"], key=row["key"], text=text_of(data), error=error)
        rows.append(made | about | {"turns": None if error else []})
    return table(*rows)
