"""A sample: counts without reading, and rows from anywhere, each the one that a job would read."""

import random
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.read import sample, tar_look
from llava_batch.read.find import find_units
from llava_batch.read.kinds import KINDS, read_rows
from llava_batch.read.sample import RETRIED, RUN_ROWS, by_kind, draw, look_at
from llava_batch.read.sample_source import read_runs
from llava_batch.unit import Unit
from tests.shards import picture, put, put_parquet, reading, tar_bytes

PLAIN = [(f"{n:03}.png", picture(n)) for n in range(20)]
WITH_SIDE_FILES = [
    member
    for n in range(20)
    for member in ((f"a/{n:03}.json", b'{"n": %d}' % n), (f"a/{n:03}.png", picture(n)),
                   (f"a/{n:03}.txt", b"said"))
]  # fmt: skip
LONG_NAMES = [(f"{'x' * 150}/{'ü' * 20}-{n}.png", picture(n)) for n in range(12)]
DATED = [(f"2026.11.{n:02}.png", picture(n)) for n in range(12)]
TWICE = [("a.png", picture(n)) for n in range(5)]
REPEATED = [*PLAIN[:5], *PLAIN[:5], ("b.json", b"{}"), ("c.left.png", picture(3))]


def tar(path: Path, data: bytes) -> Unit:
    (unit,) = find_units([str(put(path, data))])
    return unit


@pytest.mark.parametrize(
    "data",
    [
        tar_bytes(PLAIN),
        tar_bytes(WITH_SIDE_FILES),
        tar_bytes(LONG_NAMES),
        tar_bytes(DATED),
        tar_bytes(REPEATED),
        tar_bytes(PLAIN) + tar_bytes(WITH_SIDE_FILES),
        tar_bytes(PLAIN)[:5000],
        tar_bytes(PLAIN)[:-9000],
        tar_bytes(PLAIN)[:3000] + b"\1" * 700 + tar_bytes(PLAIN)[3000:],
        b"\1" * 5000,
        b"",
    ],
)
def test_a_tars_headers_count_the_rows_that_reading_gives(tmp_path: Path, data: bytes) -> None:
    unit = tar(tmp_path / "a.tar", data)
    look = KINDS["tar"].look(unit, reading())
    assert look.is_whole
    assert look.images == sum(1 for _ in read_rows(unit, reading()))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_anywhere_and_with_holes_it_is_counted_as_it_reads(tmp_path_factory, data) -> None:
    whole = data.draw(st.sampled_from([tar_bytes(WITH_SIDE_FILES), tar_bytes(LONG_NAMES)]))
    start = data.draw(st.integers(0, len(whole)))
    hole = data.draw(st.integers(0, 3000))
    torn = whole[:start] + b"\7" * hole + whole[start + data.draw(st.integers(0, 2000)) :]
    unit = tar(tmp_path_factory.mktemp("torn") / "a.tar", torn)
    assert KINDS["tar"].look(unit, reading()).images == len([*read_rows(unit, reading())])


@pytest.mark.parametrize("members", [PLAIN, WITH_SIDE_FILES, LONG_NAMES, DATED, TWICE])
def test_any_row_of_a_tar_is_read_from_its_place(tmp_path: Path, members) -> None:
    unit = tar(tmp_path / "a.tar", tar_bytes(members))
    asked = reading(None, "n", "txt")
    look, rows = KINDS["tar"].look(unit, asked), [*read_rows(unit, asked)]
    for number, row in enumerate(rows):
        part, skip = KINDS["tar"].part(unit, look, number, 1)
        (found,) = islice(read_rows(part, asked), skip, skip + 1)
        assert (found.key, found.images, found.columns) == (row.key, row.images, row.columns)


def mixed(folder: Path) -> list[Unit]:
    put(folder / "a.tar", tar_bytes(PLAIN))
    put(folder / "b.tar", tar_bytes(WITH_SIDE_FILES))
    put_parquet(folder / "c.parquet", {"image": [picture(n) for n in range(33)]}, rows_in_group=7)
    for number in range(21):
        put(folder / "loose" / f"{number}.png", picture(number))
    return find_units([str(folder)])


def test_a_sample_of_everything_has_every_row_once_as_a_job_reads_it(tmp_path: Path) -> None:
    units = mixed(tmp_path)
    looks = look_at(units, reading(), random.Random(0))
    images = {kind: sum(looks[u.name].images for u in of) for kind, of in by_kind(units).items()}
    runs = draw(units, looks, images, 10_000, random.Random(3))
    tables = pa.concat_tables(read_runs([*enumerate(runs)], reading()))
    rows = [row for row in tables.to_pylist() if not row["end"]]
    wanted = Counter((u.name, r.key) for u in units for r in read_rows(u, reading()))
    assert Counter((row["unit"], row["key"]) for row in rows) == wanted
    assert len({row["ordinal"] for row in rows}) == len(rows)
    ends = {int(r["unit"]): r["ordinal"] for r in tables.to_pylist() if r["end"]}
    counts = Counter(row["ordinal"] // RUN_ROWS for row in rows)
    assert ends == {number: counts[number] for number in range(len(runs))}


def test_one_seed_gives_one_sample_and_another_another(tmp_path: Path) -> None:
    units = mixed(tmp_path)

    def drawn(seed: int) -> list[tuple[str, int, int]]:
        chance = random.Random(seed)
        looks = look_at(units, reading(), chance)
        images = dict.fromkeys(by_kind(units), 30.0)
        return [(r.unit.name, r.skip, r.count) for r in draw(units, looks, images, 40, chance)]

    assert drawn(1) == drawn(1)
    assert len({str(drawn(seed)) for seed in range(10)}) > 5
    assert all(len(drawn(seed)) == 5 for seed in range(10))


def test_each_kind_has_its_share_of_the_sample_and_each_row_the_same_chance(tmp_path: Path) -> None:
    for number in range(90):
        put(tmp_path / "many" / f"{number:03}.png", picture(number))
    put(tmp_path / "one.tar", tar_bytes(PLAIN[:10]))
    units = find_units([str(tmp_path)])
    come: Counter[str] = Counter()
    for seed in range(300):
        chance = random.Random(seed)
        looks = look_at(units, reading(), chance)
        images = {
            k: float(sum(looks[u.name].images for u in of)) for k, of in by_kind(units).items()
        }
        for run in draw(units, looks, images, 2 * RUN_ROWS, chance):
            come[run.unit.kind] += 1
    assert come["tar"] / come.total() == pytest.approx(0.1, abs=0.04)


def test_of_many_tars_a_few_are_looked_into_and_other_ones_by_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "MOST_LOOKED_INTO", 4)
    for number in range(12):
        put(
            tmp_path / f"{number:02}.tar", tar_bytes(PLAIN[: 19 if number == 7 else 1 + number % 3])
        )
    units = find_units([str(tmp_path)])
    chosen = {frozenset(look_at(units, reading(), random.Random(s))) for s in range(20)}
    assert {len(names) for names in chosen} == {5}
    assert len(chosen) > 10
    assert all("07" in names for names in chosen), "the largest may hold most of all"
    found = by_kind(units)
    assert [u.name for u in found["tar, the largest"]] == ["07"] and len(found["tar"]) == 11


def test_of_a_tar_in_an_object_store_the_head_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of its headers would be a request.
    monkeypatch.setattr(tar_look, "HEAD_BYTES", 6000)
    put(tmp_path / "a.tar", tar_bytes(PLAIN))
    local = pafs.LocalFileSystem()
    (unit,) = find_units([str(tmp_path)])
    far = replace(unit, fs=pafs.SubTreeFileSystem(str(tmp_path), local), path="a.tar")
    look = KINDS["tar"].look(far, reading())
    assert not look.is_whole
    assert 2 <= look.images < 20 and 6000 <= look.num_bytes < 8000
    assert look.images == len(look.starts)
    part, skip = KINDS["tar"].part(far, look, 2, 1)
    (row,) = islice(read_rows(part, reading()), skip, skip + 1)
    assert row.key == "002"


def test_rows_that_are_answered_again_are_counted_and_drawn_by_their_names(tmp_path: Path) -> None:
    units = [
        replace(u, retry=frozenset({"003", "011"}))
        for u in [tar(tmp_path / "a.tar", tar_bytes(PLAIN))]
    ]
    looks = look_at(units, reading(), random.Random(0))
    (run,) = draw(units, looks, {RETRIED: 2.0}, 64, random.Random(0))
    rows = pa.concat_tables(read_runs([(0, run)], reading())).to_pylist()
    assert [row["key"] for row in rows if not row["end"]] == ["003", "011"]


def test_a_run_that_its_storage_does_not_give_ends_in_error(tmp_path: Path) -> None:
    unit = tar(tmp_path / "a.tar", tar_bytes(PLAIN))
    look = look_at([unit], reading(), random.Random(0))
    runs = draw([unit], look, {"tar": 20.0}, 8, random.Random(0))
    (tmp_path / "a.tar").unlink()
    (end,) = pa.concat_tables(read_runs([*enumerate(runs)], reading())).to_pylist()
    assert end["end"] and end["ordinal"] == 0 and "FileNotFoundError" in end["error_message"]
