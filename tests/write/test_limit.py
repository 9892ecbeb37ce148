"""`--limit`: the first images and no more, nothing of it complete, and none of it there for ever."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.read import tar
from llava_batch.read.find import find_units
from tests.nights import answers, night, read_again, text_of
from tests.outputs import ledger_of, tables
from tests.shards import put, put_parquet, tar_bytes


def shard(path: Path, count: int, start: int = 0) -> Path:
    return put(path, tar_bytes({f"{n}.png": b"%d" % (start + n) for n in range(count)}))


def lake(folder: Path) -> Path:
    """Three tars of 3 images, one of them without any, then a Parquet file, then loose files."""
    shard(folder / "a.tar", 3)
    put(folder / "b.tar", tar_bytes({}))
    shard(folder / "c.tar", 3)
    put_parquet(folder / "d.parquet", {"key": ["0", "1"], "image": [b"p0", b"p1"]})
    put(folder / "e.png", b"e")
    put(folder / "f.png", b"f")
    return folder


EVERY = [
    "a/0",
    "a/1",
    "a/2",
    "c/0",
    "c/1",
    "c/2",
    "d/0",
    "d/1",
    "lake-00000/e.png",
    "lake-00000/f.png",
]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 7, 9, 10, 11])
def test_the_first_images_are_answered_in_order_and_no_unit_is_marked_complete(tmp_path, limit):
    out = tmp_path / "out"
    night(out, lake(tmp_path / "lake"), limit=limit)
    assert sorted(answers(out)) == EVERY[:limit]
    assert ledger_of(out).records == {}
    night(out, tmp_path / "lake")
    assert sorted(answers(out)) == EVERY


def test_no_image_is_read_before_the_run_starts(tmp_path, monkeypatch):
    # The driver read N images, one by one, to find out in which units they lie.
    from llava_batch.driver.plan import make_plan
    from llava_batch.driver.settle import settle
    from llava_batch.job import Job

    folder = lake(tmp_path / "lake")
    monkeypatch.setattr(tar, "read_tar", lambda *a, **how: pytest.fail("a tar is read"))
    plan = make_plan(settle(Job(input=(str(folder),), output=str(tmp_path / "out"), limit=5)))
    assert [unit.limit for unit in plan.todo] == [5] * 5


def test_rows_in_error_that_are_tried_again_under_a_limit_leave_their_unit_committed(tmp_path):
    # The unit was written as incomplete over its record: it was open again.
    out = tmp_path / "out"
    folder = tmp_path / "in"
    path = put(folder / "a.tar", tar_bytes({f"{n}.png": b"bad %d" % n for n in range(5)}))
    shard(folder / "b.tar", 2)
    night(out, folder)
    before = answers(out)
    work = night(out, folder, limit=2, retry_errors=True)
    assert read_again(work) == {"a": 5}
    assert ledger_of(out).is_committed(find_units([str(path)])[0])
    assert night(out, folder).todo == []
    assert answers(out) == before


def test_a_later_run_of_other_input_takes_the_limited_tables_away(tmp_path):
    # They stood there for ever: no run that did not answer their units replaced them.
    out = tmp_path / "out"
    night(out, shard(tmp_path / "a.tar", 5), limit=2)
    assert tables(out) == ["a.parquet"]
    night(out, shard(tmp_path / "b.tar", 3), limit=2)
    assert sorted(answers(out)) == ["b/0", "b/1"]
    night(out, shard(tmp_path / "c.tar", 1))
    assert tables(out) == ["c.parquet"]


def test_tables_of_others_are_left_alone(tmp_path):
    out = tmp_path / "out"
    night(out, shard(tmp_path / "a.tar", 2))
    put_parquet(out / "mine.parquet", {"x": [1]})
    put(out / "broken.parquet", b"PAR1 no")
    night(out, shard(tmp_path / "b.tar", 2), limit=1)
    assert tables(out) == ["a.parquet", "b.parquet", "broken.parquet", "mine.parquet"]


def test_a_limited_run_leaves_what_was_answered_as_it_stands(tmp_path):
    # A changed unit's whole table was replaced by its first rows.
    out = tmp_path / "out"
    night(out, shard(tmp_path / "in" / "a.tar", 4))
    before = answers(out)
    shard(tmp_path / "in" / "a.tar", 6, start=9)
    shard(tmp_path / "in" / "b.tar", 3)
    work = night(out, tmp_path / "in", limit=2)
    assert (read_again(work), work.num_kept) == ({"b": -1}, 1)
    assert answers(out) == before | {"b/0": text_of(b"0"), "b/1": text_of(b"1")}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5), st.lists(st.integers(1, 12), max_size=3)
)
def test_limited_runs_before_a_whole_one_make_no_difference(tmp_path_factory, sizes, limits):
    folder = tmp_path_factory.mktemp("limited")
    for number, size in enumerate(sizes):
        shard(folder / "in" / f"{number}.tar", size)
    every = [f"{number}/{n}" for number, size in enumerate(sizes) for n in range(size)]
    for limit in limits:
        night(folder / "out", folder / "in", limit=limit)
        assert sorted(answers(folder / "out")) == every[:limit]
    night(folder / "out", folder / "in")
    assert sorted(answers(folder / "out")) == every
    assert night(folder / "out", folder / "in").todo == []
