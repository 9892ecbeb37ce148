"""Forgetting: answers of images that the input no longer has go, and no other is answered again."""

import os
import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llava_batch.answers import thumbnails
from llava_batch.driver.forgetting import delete, lost
from llava_batch.errors import UsageError
from llava_batch.read import parquet
from llava_batch.storage import locate
from llava_batch.write.ledger import Ledger
from llava_batch.write.parts import Parts, drop_other_parts
from llava_batch.write.reopen import reopen
from tests.nights import answers, night, read_again, text_of
from tests.shards import put, put_parquet, tar_bytes

ROOT = Path(__file__).resolve().parents[2]
TIMES = count(1_700_000_000_000_000_000, 1_000_000_000)


def lay(folder: Path, **contents: str) -> Path:
    for name, content in contents.items():
        path = put(folder / f"{name}.png", content.encode())
        os.utime(path, ns=(next(TIMES),) * 2)
    return folder


def shard(path: Path, **contents: str) -> Path:
    put(path, tar_bytes({f"{name}.png": c.encode() for name, c in contents.items()}))
    os.utime(path, ns=(next(TIMES),) * 2)
    return path


def opened(out: Path) -> Ledger:
    return reopen(locate(str(out)))


def forget(out: Path, *inputs: Path) -> int:
    """How many answers were deleted."""
    found = lost(opened(out), [str(i) for i in inputs])
    delete(opened(out), found)
    return found.rows


def test_a_loose_file_that_vanished_is_forgotten_and_no_other_is_answered_again(tmp_path):
    out, photos = tmp_path / "out", lay(tmp_path / "photos", a="1", b="2", c="3")
    night(out, photos)
    (photos / "b.png").unlink()
    assert forget(out, photos) == 1
    assert answers(out) == {
        "photos-00000/a.png": text_of(b"1"),
        "photos-00000/c.png": text_of(b"3"),
    }
    assert night(out, photos).todo == []
    assert forget(out, photos) == 0
    assert b"b.png" not in b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())


def test_a_forgotten_file_that_comes_back_is_answered_again(tmp_path):
    out, photos = tmp_path / "out", lay(tmp_path / "photos", a="1", b="2")
    night(out, photos)
    saved = (photos / "b.png").rename(tmp_path / "b.png")
    forget(out, photos)
    saved.rename(photos / "b.png")
    assert read_again(night(out, photos)) == {"photos-00001": -1}
    assert sorted(answers(out).values()) == sorted([text_of(b"1"), text_of(b"2")])


def test_a_file_that_changed_beside_a_forgotten_one_is_answered_again_alone(tmp_path):
    out, photos = tmp_path / "out", lay(tmp_path / "photos", **{f"i{n}": str(n) for n in range(20)})
    night(out, photos)
    (photos / "i0.png").unlink()
    lay(photos, i1="changed")
    forget(out, photos)
    assert read_again(night(out, photos)) == {"photos-00000": 1}
    assert answers(out)["photos-00000/i1.png"] == text_of(b"changed")
    assert len(answers(out)) == 19


def test_shards_and_folders_that_vanished_are_forgotten_whole(tmp_path):
    out, lake = tmp_path / "out", tmp_path / "lake"
    shard(lake / "a.tar", x="1", y="2")
    shard(lake / "b.tar", x="3")
    photos = lay(tmp_path / "photos", a="4")
    night(out, lake, photos)
    (lake / "a.tar").unlink()
    shutil.rmtree(photos)
    photos.mkdir()
    assert forget(out, lake, photos) == 3
    assert answers(out) == {"b/x": text_of(b"3")}
    assert [p.name for p in (out / "_manifest").iterdir() if "_" not in p.name] == ["b.json"]
    assert night(out, lake, photos).todo == []


def test_rows_that_a_shard_lost_are_forgotten_and_those_that_it_has_stay(tmp_path):
    out, lake = tmp_path / "out", tmp_path / "lake"
    shard(lake / "a.tar", x="1", y="2", z="3")
    put_parquet(lake / "p.parquet", {"key": ["k", "l"], "image": [b"5", b"6"]})
    night(out, lake)
    shard(lake / "a.tar", x="1", z="3")
    put_parquet(lake / "p.parquet", {"key": ["l"], "image": [b"6"]})
    assert forget(out, lake) == 2
    assert answers(out) == {"a/x": text_of(b"1"), "a/z": text_of(b"3"), "p/l": text_of(b"6")}
    assert night(out, lake, on_change="keep").todo == []


def test_a_damaged_shard_forgets_nothing_and_is_named(tmp_path):
    out, lake = tmp_path / "out", tmp_path / "lake"
    shard(lake / "a.tar", **{f"i{n}": str(n) * 2000 for n in range(9)})
    night(out, lake)
    data = (lake / "a.tar").read_bytes()
    (lake / "a.tar").write_bytes(data[: len(data) // 2])
    found = lost(opened(out), [str(lake)])
    assert (found.forgettings, found.unknown) == ([], ["a"])


def test_what_is_not_among_the_inputs_and_still_there_is_kept_and_named(tmp_path):
    out = tmp_path / "out"
    one, two = shard(tmp_path / "one" / "a.tar", x="1"), shard(tmp_path / "two" / "b.tar", x="2")
    night(out, one.parent, two.parent)
    found = lost(opened(out), [str(one.parent)])
    assert (found.rows, found.elsewhere) == (0, ["b"])
    two.unlink()
    assert forget(out, one.parent) == 1


def test_a_file_that_makes_other_units_now_is_for_the_next_run_and_nothing_of_it_goes(
    tmp_path, monkeypatch
):
    out, lake = tmp_path / "out", tmp_path / "lake"
    columns: dict[str, list[Any]] = {"key": list("abcd"), "image": [b"1", b"2", b"3", b"4"]}
    put_parquet(lake / "p.parquet", columns, rows_in_group=2)
    night(out, lake)
    monkeypatch.setattr(parquet, "SPLIT_ROWS", 2)
    monkeypatch.setattr(parquet, "_LEAST_BYTES", 0)
    put_parquet(lake / "p.parquet", {n: v + v[:1] for n, v in columns.items()}, rows_in_group=2)
    found = lost(opened(out), [str(lake)])
    assert (found.rows, found.moved) == (0, ["p"])


def test_pictures_and_the_page_go_with_the_rows(tmp_path):
    out, photos = tmp_path / "out", lay(tmp_path / "photos", a="1", b="2")
    night(out, photos)
    names = [f"photos-00000/{n}.png" for n in "ab"]
    at = locate(str(out))
    thumbnails.save(
        at, [(n, name, b"\xff\xd8" + name.encode()) for n, name in enumerate(names)], most=9
    )
    put(out / "_report.html", b"with a picture of b")
    (photos / "b.png").unlink()
    forget(out, photos)
    assert thumbnails.thumbnail_names(at) == {names[0]}
    assert not (out / "_report.html").exists()


def test_a_folder_that_a_run_left_open_is_refused(tmp_path):
    out, photos = tmp_path / "out", lay(tmp_path / "photos", a="1", b="2")
    night(out, photos, limit=1)
    with pytest.raises(UsageError, match=r"photos-00000\.parquet first: a run was stopped"):
        lost(opened(out), [str(photos)])
    with pytest.raises(UsageError, match="no run answered into this folder"):
        opened(tmp_path)


def test_a_table_that_a_kill_left_without_its_record_is_forgotten_like_any_other(tmp_path):
    # It was refused until a run had adopted it, which none does whose input has vanished.
    out, shards = tmp_path / "out", [shard(tmp_path / f"in/{n}.tar", x=n) for n in "ab"]
    night(out, tmp_path / "in")
    (out / "_manifest" / "a.json").unlink()
    shards[0].unlink()
    assert forget(out, tmp_path / "in") == 1
    assert answers(out) == {"b/x": text_of(b"b")}
    assert forget(out, tmp_path / "in") == 0 and night(out, tmp_path / "in").todo == []


def test_rows_of_an_open_unit_whose_input_changed_go_and_others_stay(tmp_path):
    out, photos = tmp_path / "out", lay(tmp_path / "photos", a="1", b="2")
    night(out, photos)
    ledger = opened(out)
    for unit, source in (("t", "1-1"), ("u", "2-2")):
        Parts(ledger).put({unit: pa.table({"unit": [unit]})}, {unit: source})
    put(out / "_manifest" / "_parts" / "cut.part", b"ARROW")
    drop_other_parts(opened(out), {"t": "1-1", "u": "changed"})
    (left,) = (out / "_manifest" / "_parts").iterdir()
    assert b"1-1" in left.read_bytes()


KILLED = """
import os, signal, sys
import llava_batch.answers.thumbnails as thumbnails, llava_batch.write.manifest as manifest
import llava_batch.write.unit_tables as unit_tables
import llava_batch.driver.forgetting as forgetting
from llava_batch.storage import locate
from llava_batch.write.reopen import reopen
out, at, *inputs = sys.argv[1:]
taken = 0
def stepped(call):
    def step(*args, **named):
        global taken
        taken += 1
        if taken == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **named)
    return step
for module, name in ((manifest, "write_whole"), (manifest, "delete_file"), (unit_tables, "write_whole"),
                     (unit_tables, "delete_file"), (thumbnails, "write_whole"), (forgetting, "delete_file")):
    setattr(module, name, stepped(getattr(module, name)))
opened = reopen(locate(out))
forgetting.delete(opened, forgetting.lost(opened, inputs))
"""


def test_killed_between_any_two_steps_a_run_answers_nothing_again_and_a_repeat_ends_it(tmp_path):
    out, photos, lake = tmp_path / "out", tmp_path / "photos", tmp_path / "lake"
    lay(photos, a="1", b="2", c="3")
    shard(lake / "t.tar", x="4")
    shard(lake / "u.tar", x="5", y="6")
    night(out, photos, lake)
    (photos / "b.png").unlink()
    (lake / "t.tar").unlink()
    wanted = {"photos-00000/a.png": "1", "photos-00000/c.png": "3", "u/x": "5", "u/y": "6"}
    shutil.copytree(out, tmp_path / "saved")
    kills = 0
    for step in range(1, 30):
        for run_between in (False, True):
            shutil.rmtree(out)
            shutil.copytree(tmp_path / "saved", out)
            ran = subprocess.run(
                [sys.executable, "-c", KILLED, str(out), str(step), str(photos), str(lake)],
                cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            )  # fmt: skip
            assert ran.returncode in (0, -signal.SIGKILL), ran.stderr
            if run_between:
                assert night(out, photos, lake).todo == []
            forget(out, photos, lake)
            assert answers(out) == {name: text_of(t.encode()) for name, t in wanted.items()}
            assert night(out, photos, lake).todo == []
        if ran.returncode == 0:
            break
        kills += 1
    assert kills >= 5
