"""The committer and the ledger: units whole or not at all, each row once, whatever comes and when."""

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_batch.storage import locate, write_whole
from llava_batch.tables import load_schema
from llava_batch.unit import Unit
from llava_batch.write.committer import Committer
from tests.outputs import EMPTY, RUN, answer, answers_of, end, ledger_of, table, tables, unit


def committer(tmp_path: Path, *units: Unit) -> Committer:
    ledger = ledger_of(tmp_path)
    ledger.begin(units, EMPTY)
    return Committer(ledger, list(units), EMPTY, RUN)


def test_a_unit_is_committed_when_its_end_and_all_its_rows_are_there(tmp_path):
    made = committer(tmp_path, unit("a"))
    assert made.add(table(answer("a", 0), answer("a", 1))) == []
    assert made.add(table(end("a", 3))) == []
    assert tables(tmp_path) == []
    assert made.add(table(answer("a", 2))) == ["a"]
    assert [r["id"] for r in answers_of(tmp_path, "a")] == ["a/0", "a/1", "a/2"]


def test_every_turn_of_a_dialogue_is_counted_in_tokens(tmp_path):
    # Once the last turn's alone: 1,755 of 4,074 in a run of dialogues.
    turns = [{"question": "Q?", "answer": "A", "answer_tokens": n} for n in (30, 2)]
    dialogue = answer("a", 0) | {"turns": turns, "answer_tokens": 2}
    caption = answer("a", 1) | {"turns": turns[:1], "answer_tokens": 30}
    made = committer(tmp_path, unit("a"))
    made.add(table(dialogue, caption, answer("a", 2, error="bad_prompt"), end("a", 3)))
    assert made.tally.answer_tokens == 62


def test_rows_in_equal_rows_out_whatever_the_order_and_the_repetitions(tmp_path_factory):
    sizes = {"a": 4, "b": 1, "c": 0}
    rows = [answer(u, i, j, 2) for u, n in sizes.items() for i in range(n) for j in range(2)]
    rows += [end(u, n) for u, n in sizes.items()]

    @settings(max_examples=60, deadline=None)
    @given(st.permutations(rows), st.lists(st.sampled_from(rows)), st.integers(1, 5))
    def check(order, again, batch):
        out = tmp_path_factory.mktemp("out")
        made = committer(out, *map(unit, sizes))
        mixed = [r for pair in zip(order, again + [None] * len(order)) for r in pair if r]  # noqa: B905
        for start in range(0, len(mixed), batch):
            made.add(table(*mixed[start : start + batch]))
        made.close()
        assert made.tally.failed_units == {}
        assert (made.tally.units, made.tally.images, made.tally.rows) == (3, 5, 10)
        for name, count in sizes.items():
            ids = [r["id"] for r in answers_of(out, name)]
            assert ids == [f"{name}/{i}#{j}" for i in range(count) for j in range(2)]

    check()


def test_a_unit_of_no_rows_is_an_empty_table_with_the_published_schema(tmp_path):
    committer(tmp_path, unit("a")).add(table(end("a", 0)))
    assert pq.read_schema(tmp_path / "a.parquet").equals(load_schema("answers"))


def test_rows_that_never_come_fail_the_unit_and_are_not_passed_over(tmp_path):
    # A run whose rows were lost on the way ended as complete.
    made = committer(tmp_path, unit("a"), unit("b"))
    made.add(table(answer("a", 0), end("a", 2)))
    made.close()
    assert made.tally.failed_units.keys() == {"a", "b"}
    assert "rows of 1 images came back and not 2" in made.tally.failed_units["a"]
    assert tables(tmp_path) == []


def test_a_unit_that_its_storage_did_not_give_is_left_open(tmp_path):
    made = committer(tmp_path, unit("a"))
    made.add(table(answer("a", 0), end("a", 1, "shard_damaged", "OSError: gone")))
    made.add(table(answer("a", 0)))
    made.close()
    assert made.tally.failed_units == {"a": "OSError: gone"}
    assert tables(tmp_path) == []


def test_a_retry_replaces_the_rows_in_error_and_keeps_the_others_byte_for_byte(tmp_path):
    made = committer(tmp_path, unit("a"))
    bad = answer("a", 1, 1, 2, error="worker_died")  # the second question of its image
    made.add(table(answer("a", 0), answer("a", 1, 0, 2), bad, answer("a", 2), end("a", 3)))
    before = answers_of(tmp_path, "a")
    ledger = ledger_of(tmp_path)
    again = replace(unit("a"), retry=frozenset({"1"}))
    assert ledger.is_committed(again)
    ledger.begin([], EMPTY)
    retried = Committer(ledger, [again], EMPTY, RUN)
    both = [answer("a", 0, number, 2, key="1", text="now") for number in range(2)]
    retried.add(table(*both, end("a", 1)))
    after = answers_of(tmp_path, "a")
    assert [after[0], after[1], after[3]] == [before[0], before[1], before[3]]
    assert (after[2]["id"], after[2]["answer"], after[2]["error_code"]) == ("a/1#1", "now", None)
    record = ledger_of(tmp_path).records["a"]
    assert (record.rows, record.images, record.errors) == (4, 3, {})


def test_a_limited_unit_is_never_marked_complete(tmp_path):
    some = replace(unit("a"), limit=1)
    committer(tmp_path, some).add(table(answer("a", 0), end("a", 1)))
    assert tables(tmp_path) == ["a.parquet"]
    assert not ledger_of(tmp_path).is_committed(unit("a"))


def test_an_id_that_stands_twice_leaves_its_unit_open_and_no_other(tmp_path):
    # It ended the run with a traceback, and every open unit with it.
    twice = answer("a", 1) | {"id": "a/0"}
    made = committer(tmp_path, unit("a"), unit("b"))
    assert made.add(table(answer("a", 0), twice, end("a", 2), answer("b", 0), end("b", 1))) == ["b"]
    made.close()
    assert made.tally.failed_units.keys() == {"a"}
    assert "the id a/0 stands 2 times" in made.tally.failed_units["a"]
    assert tables(tmp_path) == ["b.parquet"]


def test_a_unit_of_more_than_two_gigabytes_of_text_is_committed(tmp_path):
    # `offset overflow while concatenating arrays` ended the run with a traceback.
    turn = {"question": "q", "answer": "x" * 2**22, "finish_reason": "stop"}
    count, times = 64, 9  # parts of 256 MiB, which share their buffers
    one = table(*(answer("a", i) | {"turns": [turn]} for i in range(count)))
    made = committer(tmp_path, unit("a"))
    for n in reversed(range(times)):
        numbers = range(n * count, (n + 1) * count)
        part = one.set_column(0, "id", pa.array([f"a/{i}" for i in numbers]))
        part = part.set_column(
            part.schema.get_field_index("ordinal"), "ordinal", pa.array(numbers, pa.int64())
        )
        made.add(part)
    assert made.add(table(end("a", times * count))) == ["a"], made.tally.failed_units
    found = ds.dataset(tmp_path / "a.parquet")
    assert found.schema.equals(load_schema("answers"))
    ids = found.to_table(columns=["id"])["id"].to_pylist()
    assert ids == [f"a/{i}" for i in range(times * count)]


def test_a_retry_whose_table_has_gone_leaves_its_unit_open(tmp_path):
    committer(tmp_path, unit("a")).add(table(answer("a", 0, error="worker_died"), end("a", 1)))
    ledger = ledger_of(tmp_path)
    again = replace(unit("a"), retry=frozenset({"0"}))
    assert ledger.is_committed(again)
    (tmp_path / "a.parquet").unlink()
    made = Committer(ledger, [again], EMPTY, RUN)
    assert made.add(table(answer("a", 0), end("a", 1))) == []
    assert "a.parquet is no longer there" in made.tally.failed_units["a"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs but what a kill would leave."""


@pytest.mark.parametrize("step", range(16))
def test_a_kill_at_any_write_leaves_whole_tables_and_resuming_loses_nothing(
    tmp_path, monkeypatch, step
):
    """Each write to the disk in turn is the last one; then the run is resumed."""
    units = [unit("a"), unit("sub/b")]
    batch = table(*(r for u in "a sub/b".split() for r in (answer(u, 0), end(u, 1))))
    done = []

    def dying(name, real):
        def call(*arguments, **named):
            done.append(name)
            if len(done) > step:
                raise Killed
            return real(*arguments, **named)

        return call

    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, dying(name, getattr(os, name)))
    monkeypatch.setattr(os, "unlink", lambda path: None)  # a kill cleans nothing up
    with suppress(Killed):
        committer(tmp_path, *units).add(batch)
    monkeypatch.undo()
    for name in tables(tmp_path):
        assert pq.read_table(tmp_path / name).num_rows == 1
    ledger = ledger_of(tmp_path)
    todo = [u for u in units if not ledger.is_committed(u)]
    ledger.begin(todo, EMPTY)
    resumed = Committer(ledger, todo, EMPTY, RUN)
    resumed.add(batch)
    assert [r["id"] for n in ("a", "sub/b") for r in answers_of(tmp_path, n)] == ["a/0", "sub/b/0"]
    assert ledger_of(tmp_path).records.keys() == {"a", "sub/b"}
    assert not [p for p in tmp_path.rglob("_tmp-*")]


def test_a_reader_with_a_glob_never_sees_a_half_written_table(tmp_path, monkeypatch):
    # A temporary name that ended in .parquet was taken for a table by every reader that globs.
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(Killed))
    monkeypatch.setattr(os, "unlink", lambda path: None)
    with pytest.raises(Killed):
        write_whole(locate(str(tmp_path)).fs, f"{tmp_path}/a.parquet", b"half")
    assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_full_disk_leaves_no_file_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(locate(str(tmp_path)).fs, f"{tmp_path}/a.parquet", b"half")
    assert list(tmp_path.iterdir()) == []


def test_the_footer_says_what_the_table_answers(tmp_path):
    committer(tmp_path, unit("a")).add(table(answer("a", 0), end("a", 1)))
    said = pq.read_schema(tmp_path / "a.parquet").metadata
    assert said[b"llava_batch.fingerprint"].decode() == ledger_of(tmp_path).fingerprint
    assert said[b"llava_batch.source"] == b"1-1"
    assert json.loads(said[b"llava_batch.run"]) == RUN


def test_arrow_tables_are_committed_as_parquet_ones_are(tmp_path):
    ledger = ledger_of(tmp_path, format="arrow")
    ledger.begin([unit("a")], EMPTY)
    Committer(ledger, [unit("a")], EMPTY, RUN).add(table(answer("a", 0), end("a", 1)))
    found = ledger_of(tmp_path, format="arrow")
    assert found.is_committed(unit("a"))
    read = found.read_table("a")
    assert read is not None and read.num_rows == 1


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=300))
def test_a_table_that_does_not_parse_counts_for_nothing(tmp_path, data):
    (tmp_path / "a.parquet").write_bytes(data)
    assert not ledger_of(tmp_path).is_committed(unit("a"))
