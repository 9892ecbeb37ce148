"""Parts: what a kill costs, and what it never does."""

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.read import source
from llava_batch.write import committer as committing
from llava_batch.write.changes import Work
from llava_batch.write.committer import Committer
from tests.nights import answers, night
from tests.outputs import EMPTY, RUN, answer, end, ledger_of, table, unit

PLACES = ("id", "answer", "status")


def shard(path: Path, rows: int, salt: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [f"{salt}{n}".encode() for n in range(rows)]}), path)
    return path


def parts(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*.part"))


def read_again(work: Work) -> int:
    """How many images a run was to read of units of twenty."""
    return sum(20 - len(u.answered) for u in work.todo)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "PART_ROWS", 8)
    monkeypatch.setattr(source, "_BLOCK_ROWS", 4)


def test_a_kill_costs_the_rows_after_the_last_part_and_no_more(tmp_path: Path) -> None:
    # All answers of a unit were a kill's to lose, of a tar of a million images a week's.
    out, path = tmp_path / "out", shard(tmp_path / "a.parquet", 20)
    night(out, path, blocks=3)  # twelve rows came, eight of them are in a part
    assert len(parts(out)) == 1 and not [*out.glob("*.parquet")]
    resumed = night(out, path)
    assert read_again(resumed) == 12
    night(tmp_path / "whole", path)
    assert answers(out) == answers(tmp_path / "whole")
    assert pq.read_table(out / "a.parquet").equals(pq.read_table(tmp_path / "whole/a.parquet"))
    assert parts(out) == [] and night(out, path).todo == []


def test_readers_of_the_folder_see_no_part(tmp_path: Path) -> None:
    out, paths = tmp_path / "out", [shard(tmp_path / f"{n}.parquet", 20) for n in "ab"]
    night(out, *paths, blocks=8)
    assert parts(out)
    assert ds.dataset(out).count_rows() == 20


@pytest.mark.parametrize("other", [{"prompt": "y", "overwrite": True}, {"limit": 3}, "changed"])
def test_rows_of_other_settings_or_another_input_are_not_taken_up(tmp_path: Path, other) -> None:
    out, path = tmp_path / "out", shard(tmp_path / "a.parquet", 20)
    night(out, path, blocks=3)
    if other == "changed":
        shard(path, 20, salt="longer ")
    assert [
        u.answered for u in night(out, path, **(other if isinstance(other, dict) else {})).todo
    ] == [frozenset()]
    if "limit" in other:
        assert parts(out), "the whole run after it takes them up"
        assert read_again(night(out, path)) == 12
    assert parts(out) == [] and len(answers(out)) == 20


def test_a_part_that_was_cut_or_is_none_of_ours_is_passed_over(tmp_path: Path) -> None:
    out, path = tmp_path / "out", shard(tmp_path / "a.parquet", 20)
    night(out, path, blocks=3)
    (name,) = out.rglob("*.part")
    data = name.read_bytes()
    for spoiled in (data[: len(data) // 2], b"", b"no part"):
        name.write_bytes(spoiled)
        assert read_again(night(out, path, blocks=0)) == 20
        assert parts(out) == []
        name.write_bytes(data)
    assert read_again(night(out, path)) == 12


def test_parts_left_by_a_kill_after_the_last_record_go_with_the_next_run(tmp_path: Path) -> None:
    out, path = tmp_path / "out", shard(tmp_path / "a.parquet", 20)
    night(out, path, blocks=3)
    (name,) = out.rglob("*.part")
    data = name.read_bytes()
    night(out, path)
    name.write_bytes(data)
    assert not ledger_of(out).is_tidy
    ledger_of(out).begin([], EMPTY)
    assert parts(out) == []


def test_an_image_is_answered_again_unless_all_its_questions_were(tmp_path: Path) -> None:
    rows = [answer("a", n, q, 2) for n in range(6) for q in range(2)]
    first, units = ledger_of(tmp_path), [unit("a")]
    first.begin(units, EMPTY)
    Committer(first, units, EMPTY, RUN).add(table(*rows[:9]))
    again = ledger_of(tmp_path)
    again.begin(units, EMPTY)
    made = Committer(again, units, EMPTY, RUN)
    (todo,), _ = made.take_up()
    assert todo.answered == {0, 1, 2, 3}
    made.add(table(*rows[8:], end("a", 6)))
    assert made.tally.units == 1 and made.tally.rows == 12


def test_rows_in_parts_lie_in_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "PART_ROWS", 1000)
    ledger, units = ledger_of(tmp_path), [unit("a")]
    ledger.begin(units, EMPTY)
    made = Committer(ledger, units, EMPTY, RUN)
    before = pa.total_allocated_bytes()
    for start in range(0, 4000, 1000):
        made.add(table(*(answer("a", start + n, text="x" * 5000) for n in range(1000))))
    assert pa.total_allocated_bytes() - before < 8 * 2**20, "of 20 MB of answers"
    made.add(table(end("a", 4000)))
    assert made.tally.units == 1


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    kills=st.lists(st.integers(0, 12), max_size=4),
)
def test_any_kills_and_resumes_end_as_the_undisturbed_run(
    sizes: list[int], kills: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = [shard(root / "in" / f"{n}.parquet", size) for n, size in enumerate(sizes)]
        for path in paths:
            os.utime(path, ns=(1, 1))
        for blocks in kills:
            night(root / "out", *paths, blocks=blocks)
        night(root / "out", *paths)
        night(root / "whole", *paths)
        assert answers(root / "out") == answers(root / "whole")
        assert parts(root / "out") == []
