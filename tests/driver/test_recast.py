"""A kept column's type is changed later: exactly, in every table, whenever the run is killed."""

import os
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from llava_batch.driver.plan import Plan, make_plan
from llava_batch.driver.recast import needs_recast, recast
from llava_batch.driver.settle import settle
from llava_batch.errors import UsageError
from llava_batch.generate.answer_rows import generated_schema
from llava_batch.job import Job
from llava_batch.tables import KEEP
from llava_batch.write.committer import Committer
from llava_batch.write.ledger import Ledger
from tests.outputs import RUN, answer, end, ledger_of, unit
from tests.shards import picture, put, tar_bytes

INT64 = pa.schema([("c", pa.int64())])
DOUBLE = pa.schema([("c", pa.float64())])
INT8 = pa.schema([("c", pa.int8())])


def answered(out: Path, keep: pa.Schema, **values: list) -> None:
    """A run over units whose images have these values of `c`."""
    ledger = ledger_of(out)
    units = [unit(name) for name in values]
    ledger.begin(units, keep)
    made = Committer(ledger, units, keep, RUN)
    schema = generated_schema([pa.field(KEEP + "c", keep.field("c").type)])
    for name, column in values.items():
        rows = [answer(name, n) | {KEEP + "c": value} for n, value in enumerate(column)]
        made.add(pa.Table.from_pylist([*rows, end(name, len(column))], schema=schema))


def retyped(out: Path, keep: pa.Schema) -> Ledger:
    """A run that names another type, up to its first answer."""
    ledger = ledger_of(out)
    needed = needs_recast(ledger, keep, overwrite=False)
    ledger.begin([], keep, recasting=needed)
    if needed:
        recast(ledger, keep)
    return ledger


def column(out: Path) -> pa.ChunkedArray:
    return ds.dataset(out).to_table(columns=["id", "c"]).sort_by("id")["c"]


def test_committed_tables_get_the_type_that_is_given_later_and_stay_committed(tmp_path) -> None:
    answered(tmp_path, INT64, a=[1, 2], b=[3, None])
    before = pq.read_schema(tmp_path / "a.parquet").metadata
    retyped(tmp_path, DOUBLE)
    assert column(tmp_path).equals(pa.chunked_array([[1.0, 2.0, 3.0, None]]))
    assert pq.read_schema(tmp_path / "a.parquet").metadata == before
    ledger = ledger_of(tmp_path)
    assert ledger.keep == DOUBLE and not ledger.recasting
    assert all(ledger.is_committed(unit(name)) for name in "ab")
    assert not needs_recast(ledger, DOUBLE, overwrite=False)


def test_a_value_that_does_not_cast_refuses_the_type_and_touches_nothing(tmp_path) -> None:
    answered(tmp_path, INT64, a=[1], b=[300])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="--keep c: unit b has 300, which int8 does not hold"):
        retyped(tmp_path, INT8)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_overwrite_takes_any_type(tmp_path) -> None:
    answered(tmp_path, INT64, a=[1], b=[300])
    ledger = ledger_of(tmp_path, overwrite=True)
    assert not needs_recast(ledger, INT8, overwrite=True)
    ledger.begin([], INT8)
    assert [*tmp_path.glob("*.parquet")] == []


def test_a_type_is_given_before_or_after_on_the_command_line(tmp_path) -> None:
    members = {"0.png": picture(), "0.json": b'{"c": 1}'}
    tar, out = put(tmp_path / "in" / "a.tar", tar_bytes(members)), tmp_path / "out"

    def planned(*keep: str, **more) -> Plan:
        job = Job(input=(str(tar),), output=str(out), keep=keep, **more)
        return make_plan(settle(job))

    first = planned("c:int64")
    assert first.reading.keep == INT64 and not first.recast
    first.ledger.begin(first.todo, first.reading.keep)
    footer = first.ledger.footer(first.todo[0], complete=False)
    good = pa.table({"status": ["ok"]}).replace_schema_metadata(footer)
    first.ledger.tables.write(
        first.todo[0].name, good
    )  # without an answer, other columns are taken
    assert planned("c").reading.keep == INT64, "recorded, and the same settings"
    later = planned("c:double")
    assert later.reading.keep == DOUBLE and later.recast
    with pytest.raises(UsageError, match="--keep was"):
        planned("c", "d")
    with pytest.raises(UsageError, match="--keep c:dbl: dbl is no type"):
        planned("c:dbl")


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("step", range(24))
def test_a_kill_at_any_write_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    then = DOUBLE if step % 3 else INT64
    answered(tmp_path, INT64, a=[1, 2], b=[3], c=[4])
    done: list[str] = []

    def dying(name: str):
        real = getattr(os, name)

        def call(*arguments, **named):
            done.append(name)
            if len(done) > step:
                raise Killed
            return real(*arguments, **named)

        return call

    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, dying(name))
    monkeypatch.setattr(os, "unlink", lambda path: None)
    with suppress(Killed):
        retyped(tmp_path, DOUBLE)
    monkeypatch.undo()
    retyped(tmp_path, then)
    assert column(tmp_path).equals(pa.chunked_array([[1, 2, 3, 4]]).cast(then.field("c").type))
    ledger = ledger_of(tmp_path)
    assert ledger.keep == then and not ledger.recasting
    assert all(ledger.is_committed(unit(name)) for name in "abc")


def test_times_of_nanoseconds_keep_their_digits(tmp_path) -> None:
    answered(tmp_path, INT64, a=[1])
    held = pq.read_table(tmp_path / "a.parquet")
    times = pa.array([7], pa.time64("ns"))
    place = held.schema.get_field_index("c")
    pq.write_table(held.set_column(place, "c", times), tmp_path / "a.parquet")
    keep = pa.schema([("c", pa.time64("us"))])
    with pytest.raises(
        UsageError, match=r"unit a has .*, which time64\[us\] does not hold exactly"
    ):
        needs_recast(ledger_of(tmp_path), keep, overwrite=False)
