"""Publishing: the table is what stands in the folder, in one commit a run, and nothing is there twice."""

import _thread
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llava_batch.errors import OutputConflict, UsageError
from llava_batch.write.publish import publish as publishing
from llava_batch.write.publish.change import Conflict, LakeTable, PublishFailed
from llava_batch.write.publish.columns import published_schema
from llava_batch.write.publish.delta import DeltaLake
from llava_batch.write.publish.iceberg import Iceberg
from llava_batch.write.publish.publish import publish, refuse_another_folders
from llava_batch.write.publish.target import lake_table
from tests.outputs import ledger_of
from tests.write.publish.tables import (
    KINDS,
    answer_unit,
    answers,
    bring,
    folder_answers,
    lake,
    rows,
    target,
    versions,
)

__all__ = ["lake"]

both = pytest.mark.parametrize("kind", KINDS)


@both
def test_a_table_that_is_not_there_is_made_with_every_row_of_the_folder(
    kind: str, tmp_path: Path, lake: Path
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    answer_unit(out, "a", "one", None)
    answer_unit(out, "b/c's", "two")
    done = bring(out, to)
    assert (done.units_added, done.units_replaced, done.rows_written) == (2, 0, 3)
    assert answers(to) == {"a/0": "one", "a/1": "image_missing", "b/c's/0": "two"}
    first = rows(to)[0]
    assert first["unit"] == "a" and first["publication"] == done.publication
    assert set(first) == {*published_schema(pa.schema([])).names}


@both
def test_publishing_again_commits_nothing(kind: str, tmp_path: Path, lake: Path) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    answer_unit(out, "a", "one")
    first = bring(out, to)
    again = bring(out, to)
    assert (again.publication, again.version) == (None, first.version)
    assert versions(to) == 1


@both
def test_new_units_are_added_and_others_replaced_in_one_commit(
    kind: str, tmp_path: Path, lake: Path
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    for name in "abc":
        answer_unit(out, name, f"first {name}", f"second {name}")
    before = bring(out, to)
    old = answers(to)
    answer_unit(out, "b", "changed", source="2-2")
    answer_unit(out, "d", "new")
    done = bring(out, to)
    assert (done.units_added, done.units_replaced, done.rows_written) == (1, 1, 2)
    assert answers(to) == folder_answers(out) != old
    assert versions(to) == 2
    assert answers(to, before.version) == old, "a reader of the old snapshot reads it still"


@both
def test_units_that_the_folder_holds_no_more_go_in_the_same_commit(
    kind: str, tmp_path: Path, lake: Path
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    for name in "ab":
        answer_unit(out, name, f"of {name}")
    bring(out, to)
    (out / "a.parquet").unlink()
    (out / "_manifest" / "a.json").unlink()
    assert bring(out, to).units_removed == 1
    assert answers(to) == {"b/0": "of b"}
    (out / "b.parquet").unlink()
    bring(out, to)
    assert answers(to) == {}
    answer_unit(out, "c", "of c")
    bring(out, to)
    assert answers(to) == {"c/0": "of c"}


@both
def test_a_note_that_is_lost_changes_nothing(kind: str, tmp_path: Path, lake: Path) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    answer_unit(out, "a", "one")
    bring(out, to)
    (note,) = (out / "_manifest").glob("_published-*.json")
    note.unlink()
    assert bring(out, to).publication is None
    answer_unit(out, "b", "two")
    assert bring(out, to).units_added == 1
    assert answers(to) == {"a/0": "one", "b/0": "two"}


@both
def test_a_table_of_another_folder_is_refused_unless_it_is_to_be_overwritten(
    kind: str, tmp_path: Path, lake: Path
) -> None:
    to = target(kind, lake)
    answer_unit(tmp_path / "mine", "a", "mine")
    answer_unit(tmp_path / "yours", "a", "yours")
    answer_unit(tmp_path / "yours", "b", "yours")
    bring(tmp_path / "yours", to)
    with pytest.raises(OutputConflict, match=r"rows that .*mine did not publish"):
        bring(tmp_path / "mine", to)
    with pytest.raises(OutputConflict):
        refuse_another_folders(ledger_of(tmp_path / "mine"), lake_table(to))
    bring(tmp_path / "mine", to, overwrite=True)
    assert answers(to) == {"a/0": "mine"}
    with pytest.raises(OutputConflict):
        bring(tmp_path / "yours", to)


@both
def test_a_table_that_nobody_published_is_refused(kind: str, tmp_path: Path, lake: Path) -> None:
    to = target(kind, lake)
    data = pa.table({"id": ["1"]})
    if kind == "delta":
        from deltalake import write_deltalake

        write_deltalake(to.partition(":")[2], data)
    else:
        from pyiceberg.catalog import load_catalog

        load_catalog("night").create_namespace("lake")
        load_catalog("night").create_table("lake.answers", schema=data.schema)
    answer_unit(tmp_path / "out", "a", "one")
    for overwrite in (False, True):
        with pytest.raises(OutputConflict, match="a table that no publication made"):
            bring(tmp_path / "out", to, overwrite=overwrite)


@both
def test_kept_columns_of_other_types_replace_the_table_and_its_columns(
    kind: str, tmp_path: Path, lake: Path
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    answer_unit(out, "a", "one")
    before = bring(out, to)
    for types in ({"x": pa.uint8(), "t": pa.timestamp("s", "Europe/Berlin")}, {"x": pa.string()}):
        ledger = ledger_of(out)
        ledger.keep = pa.schema(list(types.items()))
        old = ledger.read_table("a")
        assert old is not None
        old = old.select([n for n in old.schema.names if n not in ("x", "t")])
        for name, kind_of in types.items():
            value = pa.array([200 if name == "t" or kind_of == pa.uint8() else "s"]).cast(kind_of)
            old = old.append_column(name, value)
        ledger.replace(ledger.records["a"], old)
        publish(ledger, lake_table(to), said={})
        (row,) = rows(to)
        assert row["x"] == (200 if "t" in types else "s")
        assert ("t" in row) == ("t" in types)
    assert answers(to, before.version) == {"a/0": "one"}


@both
def test_rows_that_another_writer_deleted_come_back(kind: str, tmp_path: Path, lake: Path) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    answer_unit(out, "a", "one", "two")
    answer_unit(out, "b", "three")
    bring(out, to)
    if kind == "delta":
        from deltalake import DeltaTable

        DeltaTable(to.partition(":")[2]).delete("id = 'a/1'")
    else:
        from pyiceberg.catalog import load_catalog

        load_catalog("night").load_table("lake.answers").delete("id = 'a/1'")
    assert len(answers(to)) == 2
    assert bring(out, to).units_replaced == 1
    assert answers(to) == folder_answers(out)


@both
def test_a_commit_that_comes_first_is_looked_at_and_nothing_is_there_twice(
    kind: str, tmp_path: Path, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    answer_unit(out, "a", "one")
    bring(out, to)
    answer_unit(out, "b", "two")
    maker = DeltaLake if kind == "delta" else Iceberg
    commit, between = maker.commit, [True]

    def late(self: LakeTable, change: Any, reader: pa.RecordBatchReader) -> str:
        if between.pop() if between else False:
            bring(out, to)  # the same answers, by somebody else
        return commit(self, change, reader)  # type: ignore[arg-type]

    monkeypatch.setattr(maker, "commit", late)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert bring(out, to).publication is None
    assert versions(to) == 2
    assert answers(to) == {"a/0": "one", "b/0": "two"}


@both
def test_commits_that_always_come_first_end_it(
    kind: str, tmp_path: Path, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(self: LakeTable, change: Any, reader: pa.RecordBatchReader) -> str:
        raise Conflict("another came first")

    answer_unit(tmp_path / "out", "a", "one")
    monkeypatch.setattr(DeltaLake if kind == "delta" else Iceberg, "commit", conflict)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(Conflict):
        bring(tmp_path / "out", target(kind, lake))


@both
def test_what_ends_the_rows_ends_the_publication_and_nothing_is_committed(
    kind: str, tmp_path: Path, lake: Path
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    answer_unit(out, "a", "one")
    answer_unit(out, "b", "two")

    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(ledger_of(out), lake_table(to), said={}, check=stopped)
    data = (out / "b.parquet").read_bytes()
    (out / "b.parquet").write_bytes(bytes(len(data)))
    with pytest.raises(PublishFailed, match=r"b\.parquet: is not what its record says"):
        bring(out, to)
    assert rows(to) == []
    (out / "b.parquet").write_bytes(data)
    bring(out, to)
    assert answers(to) == folder_answers(out)


@both
def test_a_signal_is_heeded_while_the_library_writes(kind: str, tmp_path: Path, lake: Path) -> None:
    # deltalake asks for the rows from a thread of its own, and the main one waited in it to the end.
    out, to = tmp_path / "out", target(kind, lake)
    for name in "abc":
        answer_unit(out, name, name)
    calls = []

    def interrupting() -> None:
        calls.append(1)
        if len(calls) == 1:
            _thread.interrupt_main()
        time.sleep(0.5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            publish(ledger_of(out), lake_table(to), said={}, check=interrupting)
    finally:
        signal.signal(signal.SIGINT, before)
    assert rows(to) == [] and len(calls) < 4
    bring(out, to)
    assert answers(to) == folder_answers(out)


@both
def test_many_units_whose_rows_go_are_not_named_one_by_one(
    kind: str, tmp_path: Path, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, to = tmp_path / "out", target(kind, lake)
    for name in "abcd":
        answer_unit(out, name, name)
    bring(out, to)
    monkeypatch.setattr(publishing, "MOST_NAMED", 1)
    for name in "ab":
        answer_unit(out, name, "changed", source="2-2")
    assert bring(out, to).rows_written == 4
    assert answers(to) == folder_answers(out)


def test_only_two_forms_are_known_and_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for text in ("lake/answers", "delta:", "s3://lake/t", "hudi:x"):
        with pytest.raises(UsageError, match="give delta:URI, or iceberg"):
            lake_table(text)
    with pytest.raises(UsageError, match="give iceberg:CATALOG"):
        lake_table("iceberg:night.answers")
    monkeypatch.setattr("llava_batch.write.publish.target.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'llava-batch\[lake\]'"):
        lake_table("delta:lake/answers")


def test_types_that_a_table_has_not_are_refused_by_column() -> None:
    for kind in (pa.timestamp("ns"), pa.time64("us"), pa.duration("s"), pa.list_(pa.time32("s"))):
        with pytest.raises(UsageError, match="--keep x: "):
            published_schema(pa.schema([("x", kind)]))
    with pytest.raises(UsageError, match="has a column of that name"):
        published_schema(pa.schema([("unit_version", pa.string())]))
