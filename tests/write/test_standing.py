"""Nights over a Delta table whose files come, lose rows and are rewritten: what stands, and what is bought."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llava_batch.errors import UsageError
from llava_batch.write import ledger as ledger_module
from llava_batch.write import manifest, unit_tables
from llava_batch.write.committer import Committer
from tests.nights import answers, night, read_again, text_of
from tests.read.lake.tables import IMAGE_FIELDS, DeltaLog, images
from tests.shards import picture

deltalake = pytest.importorskip("deltalake")


class Lake:
    """A Delta table `t` and an output, and the nights over it."""

    def __init__(self, folder: Path, key_column: str | None = "name") -> None:
        self.log = DeltaLog(folder / "t", IMAGE_FIELDS)
        self.out = folder / "out"
        self.key_column = key_column
        self.bought = 0
        self.copied = 0

    def put(self, name: str, *numbers: int, caption: str | None = None) -> dict[str, Any]:
        """A data file of these pictures, and the action that adds it."""
        table = images(*numbers)
        if caption is not None:
            table = table.set_column(2, "caption", pa.array([caption] * len(numbers)))
        self.log.write(f"{name}.parquet", table)
        return self.log.add(f"{name}.parquet")

    def night(self, **how: Any) -> Any:
        held: list[Committer] = []
        try:
            return night(
                self.out, self.log.folder, key_column=self.key_column, tell=held.append, **how
            )
        finally:
            self.bought = held[0].tally.rows if held else 0
            self.copied = held[0].tally.rows_copied if held else 0

    def keys(self, *numbers: int) -> dict[str, str]:
        """The answers that these pictures have, by id."""
        return {f"t/k{n}": text_of(picture(n)) for n in numbers}


def test_new_files_are_answered_and_deleted_rows_leave_the_others_as_they_stand(tmp_path):
    lake = Lake(tmp_path, key_column=None)
    first = lake.put("a", 1, 2, 3)
    lake.log.commit(first)
    lake.night()
    before = answers(lake.out)
    vector = lake.log.in_file([1])
    lake.log.commit(
        lake.log.remove("a.parquet"), lake.log.add("a.parquet", vector=vector), lake.put("b", 4)
    )
    assert read_again(lake.night()) == {"t/b": -1}
    assert answers(lake.out) == before | {"t/b/0": text_of(picture(4))}
    lake.log.commit(lake.log.remove("a.parquet", vector))  # the whole file, and none in its place
    assert lake.night().todo == []
    assert answers(lake.out) == before | {"t/b/0": text_of(picture(4))}


def test_rows_that_were_deleted_when_a_file_was_answered_are_answered_once_they_are_back(tmp_path):
    lake = Lake(tmp_path, key_column=None)
    lake.put("a", 1, 2, 3)
    vector = lake.log.inline([0])
    lake.log.commit(lake.log.add("a.parquet", vector=vector))
    lake.night()
    assert set(answers(lake.out)) == {"t/a/1", "t/a/2"}
    more = lake.log.inline([0, 1])
    lake.log.commit(lake.log.remove("a.parquet", vector), lake.log.add("a.parquet", vector=more))
    assert lake.night().todo == []
    again = lake.log.inline([1])  # as many as at first, and others
    lake.log.commit(lake.log.remove("a.parquet", more), lake.log.add("a.parquet", vector=again))
    assert read_again(lake.night(on_change="answer")) == {"t/a": -1}
    assert set(answers(lake.out)) == {"t/a/0", "t/a/2"}
    assert lake.night().todo == []


def test_with_keys_compaction_buys_nothing_and_leaves_each_id_once(tmp_path):
    lake = Lake(tmp_path)
    lake.log.commit(lake.put("a", 1, 2), lake.put("b", 3), lake.put("c", 4))
    lake.night()
    compacted = lake.put("abc", 3, 1, 2, 4)
    lake.log.commit(*map(lake.log.remove, ("a.parquet", "b.parquet", "c.parquet")), compacted)
    assert read_again(lake.night()) == {"t/abc": -1}
    assert (lake.bought, lake.copied) == (0, 4)
    assert answers(lake.out) == lake.keys(1, 2, 3, 4)
    assert [p.name for p in (lake.out / "t").iterdir()] == ["abc.parquet"]
    assert lake.night().todo == []


def test_with_keys_only_a_changed_image_is_bought_and_a_deleted_row_keeps_its_answer(tmp_path):
    lake = Lake(tmp_path)
    lake.log.commit(lake.put("a", 1, 2, 3), lake.put("b", 4))
    lake.night()
    rows = images(1, 2).set_column(1, "image", pa.array([picture(1), picture(22)], pa.binary()))
    lake.log.write("a2.parquet", rows)
    lake.log.commit(lake.log.remove("a.parquet"), lake.log.add("a2.parquet"))
    lake.night()
    assert (lake.bought, lake.copied) == (1, 1)
    assert answers(lake.out) == lake.keys(1, 3, 4) | {"t/k2": text_of(picture(22))}


def test_with_keys_a_row_that_an_update_moves_out_of_a_file_that_stays_is_there_once(tmp_path):
    lake = Lake(tmp_path)
    lake.log.commit(lake.put("a", 1, 2, 3))
    lake.night()
    vector = lake.log.in_file([1])
    lake.log.commit(
        lake.log.remove("a.parquet"),
        lake.log.add("a.parquet", vector=vector),
        lake.put("u", 2, caption="new"),
    )
    lake.night()
    assert (lake.bought, lake.copied) == (0, 1)
    assert answers(lake.out) == lake.keys(1, 2, 3)
    assert lake.night().todo == []


def test_rows_in_error_are_asked_again_and_not_copied(tmp_path):
    lake = Lake(tmp_path)
    bad = images(1, 2).set_column(1, "image", pa.array([b"bad", picture(2)], pa.binary()))
    lake.log.write("a.parquet", bad)
    lake.log.commit(lake.log.add("a.parquet"))
    lake.night()
    lake.log.write("b.parquet", bad)
    lake.log.commit(lake.log.remove("a.parquet"), lake.log.add("b.parquet"))
    lake.night()
    assert (lake.bought, lake.copied) == (1, 1)
    assert answers(lake.out) == {"t/k1": "image_unreadable", "t/k2": text_of(picture(2))}


def test_without_keys_compaction_stops_before_it_costs_anything_unless_that_is_meant(tmp_path):
    lake = Lake(tmp_path, key_column=None)
    lake.log.commit(lake.put("a", 1, 2), lake.put("b", 3))
    lake.night()
    before = answers(lake.out)
    lake.log.commit(lake.log.remove("a.parquet"), lake.put("a2", 1, 2))
    with pytest.raises(
        UsageError, match=r"2 of 3 answered rows would be answered again.* t/a first"
    ):
        lake.night()
    assert answers(lake.out) == before
    lake.night(on_change="keep")
    assert set(answers(lake.out)) == {*before, "t/a2/0", "t/a2/1"}
    lake.night(on_change="answer")
    assert set(answers(lake.out)) == {
        *before,
        "t/a2/0",
        "t/a2/1",
    }  # no new file, nothing to replace


def test_a_repeated_key_and_a_row_without_one_are_refused_before_anything_starts(tmp_path):
    lake = Lake(tmp_path)
    lake.log.commit(lake.put("a", 1, 2), lake.put("b", 3, 2))
    with pytest.raises(UsageError, match=r"--key-column name: 2 rows of .*have the key k2"):
        lake.night()
    assert not lake.out.exists()
    lake.log.commit(
        lake.log.remove("b.parquet"),
        lake.log.remove("a.parquet"),
        lake.log.add("a.parquet", vector=lake.log.inline([1])),
        lake.put("c", 2),
    )
    lake.night()  # the one of them that is deleted counts for nothing
    assert answers(lake.out) == lake.keys(1, 2)
    nameless = images(7).set_column(0, "name", pa.nulls(1, pa.string()))
    lake.log.write("d.parquet", nameless)
    lake.log.commit(lake.log.add("d.parquet"))
    with pytest.raises(UsageError, match=r"d\.parquet has rows without a key"):
        lake.night()


class Killed(BaseException):
    """As a kill is: nothing that runs afterwards sees it."""


@pytest.mark.parametrize("rewritten", [False, True])
def test_killed_at_each_of_its_writes_a_compacted_night_is_made_whole_by_the_next(
    tmp_path, monkeypatch, rewritten
):
    steps = 0
    while True:
        lake = Lake(tmp_path / str(steps))
        lake.log.commit(lake.put("a", 1, 2), lake.put("b", 3), lake.put("c", 4, 5))
        lake.night()
        compacted = lake.put("ab", 1, 2, 3, 6), lake.put("c2", 5)  # k4 is deleted
        lake.log.commit(*map(lake.log.remove, ("a.parquet", "b.parquet", "c.parquet")), *compacted)
        left = [steps]

        def step(call: Any, left: list[int] = left) -> Any:
            def counted(*arguments: Any) -> Any:
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return call(*arguments)

            return counted

        with monkeypatch.context() as patch:
            for module in (ledger_module, manifest, unit_tables):
                for name in ("write_whole", "delete_file"):
                    patch.setattr(module, name, step(getattr(module, name)))
            try:
                lake.night()
            except Killed:
                killed = True
            else:
                killed = False
        if rewritten:  # and nobody will ever read the files that were being answered
            lake.log.commit(
                *map(lake.log.remove, ("ab.parquet", "c2.parquet")), lake.put("x", 6, 5, 3, 2, 1)
            )
        lake.night()
        assert answers(lake.out) == lake.keys(1, 2, 3, 4, 5, 6), f"killed before write {steps}"
        assert lake.bought <= 1  # k6, where its answer was not kept
        assert lake.night().todo == []
        assert not (lake.out / "_manifest/_moving.json").exists()
        if not killed:
            break
        steps += 1
    assert steps >= 8


def test_a_move_is_ended_by_a_run_that_has_nothing_else_to_do(tmp_path, monkeypatch):
    lake = Lake(tmp_path)
    lake.log.commit(lake.put("a", 1, 2))
    lake.night()
    lake.log.commit(lake.log.remove("a.parquet"), lake.put("b", 2, 1))
    with monkeypatch.context() as patch:
        patch.setattr(
            "llava_batch.write.standing._take_out", lambda *any: (_ for _ in ()).throw(Killed)
        )
        with pytest.raises(Killed):
            lake.night()
    with pytest.raises(AssertionError, match="an id stands twice"):
        answers(lake.out)
    assert lake.night().todo == []
    assert answers(lake.out) == lake.keys(1, 2)


def test_a_compacted_table_leaves_each_id_once_though_a_kill_kept_one_unit_from_its_record(
    tmp_path,
):
    # A first night moves nothing, so no `_moving.json` told of the table that it left.
    lake = Lake(tmp_path)
    lake.log.commit(lake.put("a", 1, 2), lake.put("b", 3))
    lake.night()
    (lake.out / "_manifest/t/a.json").unlink()
    lake.log.commit(*map(lake.log.remove, ("a.parquet", "b.parquet")), lake.put("ab", 3, 2, 1))
    lake.night()
    assert answers(lake.out) == lake.keys(1, 2, 3)
    assert (lake.bought, lake.copied) == (0, 3)


def test_overwriting_leaves_no_answers_of_files_that_vanished_beside_new_ones_of_the_same_ids(
    tmp_path,
):
    lake = Lake(tmp_path)
    lake.log.commit(lake.put("a", 1, 2))
    lake.night()
    lake.log.commit(lake.log.remove("a.parquet"), lake.put("b", 2, 1))
    lake.night(overwrite=True)
    assert (lake.bought, lake.copied) == (2, 0)
    assert answers(lake.out) == lake.keys(1, 2)


def test_rows_that_were_kept_of_an_open_file_count_for_nothing_once_others_are_deleted(tmp_path):
    lake = Lake(tmp_path, key_column=None)
    lake.log.commit(lake.put("a", *range(100)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava_batch.write.committer.PART_ROWS", 10)
        lake.night(blocks=2)  # killed
    vector = lake.log.inline([0, 5])
    lake.log.commit(lake.log.remove("a.parquet"), lake.log.add("a.parquet", vector=vector))
    lake.night()
    expected = {f"t/a/{n}": text_of(picture(n)) for n in range(100) if n not in (0, 5)}
    assert answers(lake.out) == expected
