"""Nights over inputs that roll on: what vanished keeps its answers, what changed is asked about."""

import json
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.errors import OutputConflict, UsageError
from llava_batch.read import loose_units as finding
from llava_batch.read import parquet
from llava_batch.write import manifest
from tests.nights import BAD, answers, night, read_again, text_of
from tests.outputs import ledger_of, tables
from tests.shards import put, put_parquet, tar_bytes

TIMES = count(1_700_000_000_000_000_000, 1_000_000_000)


def lay(folder: Path, **contents: str) -> Path:
    """Images `a.png` … of these contents, each written later than whatever was before."""
    for name, content in contents.items():
        path = put(folder / f"{name}.png", content.encode())
        os.utime(path, ns=(next(TIMES),) * 2)
    return folder


def ten(folder: Path, **changed: str) -> Path:
    return lay(folder, **({f"i{n}": f"first {n}" for n in range(10)} | changed))


def shard(path: Path, *contents: str) -> Path:
    put(path, tar_bytes({f"{n}.png": c.encode() for n, c in enumerate(contents)}))
    os.utime(path, ns=(next(TIMES),) * 2)
    return path


# Loose files


def test_a_loose_file_that_vanished_keeps_its_answer_and_no_other_is_answered_again(tmp_path):
    # Its unit was answered again, and its good answer became image_missing.
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos)
    before = answers(out)
    (photos / "i3.png").unlink()
    assert night(out, photos).todo == []
    assert answers(out) == before


def test_nights_go_on_when_the_first_units_files_are_all_gone(tmp_path):
    # Every later night was refused: "none of the files … is there".
    out, photos = tmp_path / "out", lay(tmp_path / "photos", a="1", b="2")
    night(out, photos)
    for name in "ab":
        (photos / f"{name}.png").unlink()
    assert night(out, photos).todo == []
    lay(photos, c="3")
    assert read_again(night(out, photos)) == {"photos-00001": -1}
    assert answers(out) == {"photos-00000/a.png": text_of(b"1"), "photos-00000/b.png": text_of(b"2"),
                            "photos-00001/c.png": text_of(b"3")}  # fmt: skip


def test_a_loose_file_that_changed_is_answered_again_alone(tmp_path):
    # Its whole unit was answered again.
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos)
    before = pq.read_table(out / "photos-00000.parquet").to_pylist()
    lay(photos, i4="second")
    work = night(out, photos)
    assert read_again(work) == {"photos-00000": 1}
    assert work.todo[0].changed == work.todo[0].retry == frozenset({"i4.png"})
    after = pq.read_table(out / "photos-00000.parquet").to_pylist()
    assert after[4]["answer"] == text_of(b"second")
    assert after[:4] + after[5:] == before[:4] + before[5:]
    assert night(out, photos).todo == []


def test_what_vanished_stays_while_its_neighbours_change_and_come_back(tmp_path):
    out, photos = tmp_path / "out", ten(tmp_path / "photos", i7="bad one")
    night(out, photos)
    before = answers(out)
    kept = (photos / "i0.png").read_bytes(), (photos / "i0.png").stat()
    for name in ("i0", "i1", "i7"):
        (photos / f"{name}.png").unlink()
    lay(photos, i2="second")
    assert read_again(night(out, photos)) == {"photos-00000": 1}
    assert answers(out) == before | {"photos-00000/i2.png": text_of(b"second")}
    assert night(out, photos, retry_errors=True).todo == []
    os.utime(put(photos / "i0.png", kept[0]), ns=(kept[1].st_mtime_ns,) * 2)
    lay(photos, i1="another")
    assert read_again(night(out, photos)) == {"photos-00000": 1}
    assert answers(out)["photos-00000/i0.png"] == before["photos-00000/i0.png"]
    assert answers(out)["photos-00000/i1.png"] == text_of(b"another")


def test_rows_in_error_and_rows_of_changed_files_are_answered_in_one(tmp_path):
    out, photos = tmp_path / "out", ten(tmp_path / "photos", i5="bad five", i6="bad six")
    night(out, photos)
    assert answers(out)["photos-00000/i5.png"] == "image_unreadable"
    lay(photos, i4="second")
    work = night(out, photos, retry_errors=True)
    assert [unit.retry for unit in work.todo] == [frozenset({"i4.png", "i5.png", "i6.png"})]
    assert answers(out)["photos-00000/i4.png"] == text_of(b"second")


def test_a_good_answer_of_a_file_that_is_bad_now_is_replaced(tmp_path):
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos)
    lay(photos, i9=BAD.decode())
    night(out, photos)
    assert answers(out)["photos-00000/i9.png"] == "image_unreadable"


def test_files_that_vanish_before_they_were_answered_are_not_waited_for(tmp_path):
    # Each became a row in error.
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos, limit=3)
    (photos / "i5.png").unlink()
    night(out, photos)
    assert len(answers(out)) == 9 and "photos-00000/i5.png" not in answers(out)
    lay(photos, i5="late")
    night(out, photos)
    assert answers(out)["photos-00001/i5.png"] == text_of(b"late")
    night(tmp_path / "out2", lay(tmp_path / "b", x="1"), limit=1)
    (tmp_path / "b" / "x.png").unlink()
    assert night(tmp_path / "out2", lay(tmp_path / "b", y="2")).todo[0].members == ("y.png",)


def test_another_folder_of_the_same_name_is_refused_and_a_moved_one_is_not(tmp_path):
    out = tmp_path / "out"
    night(out, ten(tmp_path / "x" / "in"))
    with pytest.raises(OutputConflict, match="none of the files that the output's unit in-00000"):
        night(out, lay(tmp_path / "y" / "in", other="1"))
    with pytest.raises(OutputConflict, match=r"answered from .*x/in; give another --output"):
        night(out, lay(tmp_path / "z" / "in", i0="1"))
    (tmp_path / "x" / "in").rename(tmp_path / "in")
    (tmp_path / "in" / "i3.png").unlink()
    assert night(out, tmp_path / "in").todo == []


# Shards


def test_a_shard_that_vanished_keeps_its_answers(tmp_path):
    out, lake = tmp_path / "out", tmp_path / "lake"
    paths = [shard(lake / f"{n}.tar", f"image {n}") for n in range(3)]
    night(out, lake)
    before = answers(out)
    for path in paths:
        path.unlink()
    assert night(out, lake).todo == [], "a folder that is there and empty: nothing to do"
    assert answers(out) == before


def test_a_shard_name_used_again_replaces_its_answers_only_where_that_is_meant(tmp_path):
    # The old answers were replaced without a word.
    out, path = tmp_path / "out", shard(tmp_path / "lake" / "0.tar", "a", "b")
    night(out, path)
    before = answers(out)
    shard(path, "c", "d", "e")
    with pytest.raises(
        UsageError, match=r"2 of 2 answered rows would be answered again: .* 0 first"
    ):
        night(out, path)
    with pytest.raises(UsageError, match="--on-change refuse: the input of 1 unit"):
        night(out, path, on_change="refuse")
    kept = night(out, path, on_change="keep")
    assert (kept.todo, kept.num_kept, kept.num_done) == ([], 1, 1)
    assert answers(out) == before
    assert night(out, path, on_change="answer").num_changed == 1
    assert answers(out) == {f"0/{n}": text_of(c) for n, c in enumerate([b"c", b"d", b"e"])}


def test_up_to_a_tenth_of_the_answered_rows_is_answered_again_unasked(tmp_path):
    out, lake = tmp_path / "out", tmp_path / "lake"
    for n in range(20):
        shard(lake / f"{n:02}.tar", f"image {n}")
    night(out, lake)
    for n in range(2):
        shard(lake / f"{n:02}.tar", "changed")
    assert night(out, lake).num_changed == 2
    for n in range(3):
        shard(lake / f"{n:02}.tar", "again")
    with pytest.raises(UsageError, match="3 of 20 answered rows"):
        night(out, lake)


def test_the_brake_counts_the_loose_files_that_changed_and_not_their_units(tmp_path):
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos)
    lay(photos, i1="x", i2="y")
    with pytest.raises(UsageError, match=r"2 of 10 answered rows .* photos-00000 first"):
        night(out, photos)
    assert night(out, photos, on_change="keep").num_kept == 1
    assert night(out, photos, on_change="keep", retry_errors=True).todo == []
    assert read_again(night(out, photos, on_change="answer")) == {"photos-00000": 2}


def test_what_was_kept_is_known_to_have_changed_the_next_night_too(tmp_path):
    out, photos = tmp_path / "out", ten(tmp_path / "photos", i0="bad")
    night(out, photos)
    lay(photos, i1="x", i2="y")
    night(out, photos, on_change="keep", retry_errors=True)
    lay(photos, new="1")
    night(out, photos, on_change="keep")
    assert read_again(night(out, photos, on_change="answer")) == {"photos-00000": 2}


@pytest.mark.parametrize("flag", [None, "answer", "keep", "refuse"])
def test_another_place_with_other_content_is_taken_only_where_a_flag_says_how(tmp_path, flag):
    out = tmp_path / "out"
    night(out, shard(tmp_path / "x" / "0.tar", "a"))
    path = shard(tmp_path / "y" / "0.tar", "b")
    if flag in (None, "refuse"):
        with pytest.raises(
            UsageError, match=r"answered from .*x/0\.tar" if flag is None else "0 first"
        ):
            night(out, path, on_change=flag)
    else:
        night(out, path, on_change=flag)
    assert answers(out) == {"0/0": text_of(b"b" if flag == "answer" else b"a")}


def grown(path: Path, rows: int) -> Path:
    columns = {
        "key": [str(n) for n in range(rows)],
        "image": [b"%d" % n * 2000 for n in range(rows)],
    }
    put_parquet(path, columns, rows_in_group=2)
    os.utime(path, ns=(next(TIMES),) * 2)
    return path


def test_a_file_that_grew_until_it_is_split_is_a_change_as_any_other(tmp_path, monkeypatch):
    # Its whole table was removed before anything else was answered, however much that was.
    out, path = tmp_path / "out", grown(tmp_path / "a.parquet", 4)
    night(out, path)
    grown(path, 8)
    monkeypatch.setattr(parquet, "SPLIT_BYTES", path.stat().st_size // 3)
    with pytest.raises(UsageError, match="4 of 4 answered rows"):
        night(out, path)
    with pytest.raises(UsageError, match="--on-change refuse"):
        night(out, path, on_change="refuse")
    assert night(out, path, on_change="keep").todo == []
    assert tables(out) == ["a.parquet"]
    night(out, path, on_change="answer")
    assert "a.parquet" not in tables(out) and len(answers(out)) == 8


def by_rows(monkeypatch: pytest.MonkeyPatch, most: int = 4) -> None:
    monkeypatch.setattr(parquet, "SPLIT_ROWS", most)
    monkeypatch.setattr(parquet, "_LEAST_BYTES", 0)


def with_rules(out: Path, rules: int) -> None:
    """Have all records say that units were made by `rules`."""
    for path in (out / "_manifest").rglob("[!_]*.json"):
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"rules": rules}))


def test_a_file_that_was_answered_as_one_unit_stays_one(tmp_path, monkeypatch) -> None:
    out, path = tmp_path / "out", grown(tmp_path / "a.parquet", 12)
    night(out, path)
    by_rows(monkeypatch)
    assert night(out, path).todo == []
    (out / "_manifest" / "a.json").unlink()  # a kill came between table and record
    assert night(out, path).todo == [] and tables(out) == ["a.parquet"]


def test_a_file_that_was_split_by_bytes_alone_keeps_its_units(tmp_path, monkeypatch) -> None:
    out, path = tmp_path / "out", grown(tmp_path / "a.parquet", 12)
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "SPLIT_BYTES", path.stat().st_size // 3)
        night(out, path)
        with_rules(out, 2)
        before = tables(out)
        assert len(before) == 2
        (out / "_manifest" / "a-00001.json").unlink()
        (out / "a-00001.parquet").unlink()
        by_rows(patch, 2)
        assert [u.name for u in night(out, path).todo] == ["a-00001"]
        assert tables(out) == before and len(answers(out)) == 12
        assert night(out, path).todo == []


def test_a_changed_file_is_split_by_the_newest_rules(tmp_path, monkeypatch) -> None:
    out, path = tmp_path / "out", grown(tmp_path / "a.parquet", 8)
    night(out, path)
    with_rules(out, 2)
    by_rows(monkeypatch)
    grown(path, 12)
    night(out, path, on_change="answer")
    assert tables(out) == [f"a-0000{n}.parquet" for n in range(3)] and len(answers(out)) == 12


def test_what_vanished_is_not_left_beside_answers_to_another_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "FILES_PER_UNIT", 5)
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    paths = [shard(tmp_path / "lake" / f"{n}.tar", "a") for n in range(2)]
    night(out, photos, tmp_path / "lake")
    for path in (*(photos / f"i{n}.png" for n in range(6)), paths[0]):
        path.unlink()
    night(out, photos, tmp_path / "lake", prompt="y", overwrite=True)
    assert sorted(answers(out)) == ["1/0", *(f"photos-00001/i{n}.png" for n in range(6, 10))]
    night(out, photos, tmp_path / "lake", prompt="y", overwrite=True)
    assert night(out, photos, tmp_path / "lake", prompt="y").todo == []


# Folders of older versions, and kills


def forget(out: Path) -> None:
    """Leave the members as version 0.1.0 wrote them: names alone."""
    for path in (out / "_manifest").rglob("*.members"):
        said = json.loads(path.read_bytes())
        path.write_text(json.dumps(said if isinstance(said, list) else list(said["members"])))


def test_an_older_folder_is_gone_on_with_and_learns_what_its_files_are(tmp_path):
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos)
    forget(out)
    before = answers(out)
    lay(photos, new="1")
    assert read_again(night(out, photos)) == {"photos-00001": -1}
    (photos / "i3.png").unlink()
    lay(photos, i4="second")
    assert read_again(night(out, photos)) == {"photos-00000": 1}
    assert answers(out).items() >= {(k, v) for k, v in before.items() if "i4" not in k}


def test_in_an_older_folder_what_vanished_keeps_its_answers_though_the_rest_is_asked_again(
    tmp_path,
):
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos)
    forget(out)
    before = answers(out)
    (photos / "i3.png").unlink()
    with pytest.raises(UsageError, match="9 of 10 answered rows"):
        night(out, photos)
    assert read_again(night(out, photos, on_change="answer")) == {"photos-00000": 9}
    assert answers(out) == before
    (photos / "i5.png").unlink()
    assert night(out, photos).todo == []


def test_an_older_folder_all_of_whose_files_are_gone_has_nothing_to_do(tmp_path):
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos)
    forget(out)
    for path in photos.iterdir():
        path.unlink()
    assert night(out, photos).todo == []
    lay(photos, new="1")
    assert read_again(night(out, photos)) == {"photos-00001": -1}
    assert len(answers(out)) == 11


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed_night(out: Path, inputs: tuple[Path, ...], step: int, **how) -> None:
    """A night whose disk dies at its `step`-th rename; nothing after that is written or cleaned up."""
    renames, real = [], os.replace

    def dying(*paths):
        renames.append(paths)
        if len(renames) > step:
            raise Killed
        real(*paths)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(os, "replace", dying)
        patch.setattr(os, "unlink", lambda path: None)
        night(out, *inputs, **how)


@pytest.mark.parametrize("step", range(5))
def test_a_kill_while_changed_files_are_answered_loses_nothing(tmp_path, step):
    out, photos = tmp_path / "out", ten(tmp_path / "photos")
    night(out, photos)
    before = answers(out)
    (photos / "i3.png").unlink()
    lay(photos, i4="second")
    killed_night(out, (photos,), step)
    (photos / "i5.png").unlink()
    lay(photos, i6="third")
    night(out, photos, on_change="answer")
    after = answers(out)
    assert after.keys() == before.keys()
    assert (after["photos-00000/i4.png"], after["photos-00000/i6.png"]) == (
        text_of(b"second"), text_of(b"third")
    )  # fmt: skip
    assert after["photos-00000/i3.png"] == before["photos-00000/i3.png"]
    assert after["photos-00000/i5.png"] == before["photos-00000/i5.png"]
    assert night(out, photos).todo == []


def without_record(out: Path, *units: str) -> None:
    """As a kill between a table and its record leaves it."""
    for name in units:
        (out / f"_manifest/{name}.json").unlink()


def test_a_table_whose_record_a_kill_prevented_goes_where_its_shard_makes_other_units(
    tmp_path, monkeypatch
):
    # Nobody asked for a unit of its name any more, and a reader saw its rows beside those of now.
    out, path = tmp_path / "out", grown(tmp_path / "a.parquet", 12)
    with monkeypatch.context() as patch:
        by_rows(patch)
        night(out, path)
    assert len(tables(out)) == 3
    without_record(out, "a-00001")
    grown(path, 2)
    night(out, path, on_change="answer")
    assert tables(out) == ["a.parquet"] and len(answers(out)) == 2


def test_a_table_whose_record_a_kill_prevented_keeps_its_answers_when_its_shard_vanishes(tmp_path):
    out, paths = tmp_path / "out", [shard(tmp_path / f"{n}.tar", n) for n in "ab"]
    night(out, *paths)
    without_record(out, "a")
    paths[0].unlink()
    night(out, paths[1])
    assert sorted(ledger_of(out).records) == ["a", "b"] and len(answers(out)) == 2
    assert ledger_of(out).tables_without_record() == []


def test_an_index_that_is_deleted_as_its_message_says_doubles_no_row(tmp_path, monkeypatch):
    # What each unit is made of went with it: the same files make other units then.
    monkeypatch.setattr(manifest, "KEEP_FILES", 1)
    out, photos = tmp_path / "out", lay(tmp_path / "photos", b="1", c="2")
    night(out, photos)
    night(out, lay(photos, a="3", d="4"))
    assert tables(out) == ["photos-00000.parquet", "photos-00001.parquet"]
    indexes = [*(out / "_manifest/_index").iterdir()]
    assert indexes and not [*(out / "_manifest").glob("photos*")]
    for path in indexes:
        path.unlink()
    with pytest.raises(UsageError, match="4 of 4 answered rows"):
        night(out, photos)
    night(out, photos, on_change="answer")
    assert tables(out) == ["photos-00000.parquet"] and len(answers(out)) == 4


def test_overwriting_leaves_no_table_to_another_prompt_though_it_has_no_record(tmp_path):
    out, paths = tmp_path / "out", [shard(tmp_path / f"{n}.tar", n) for n in "ab"]
    night(out, *paths)
    without_record(out, "a")
    paths[0].unlink()
    night(out, paths[1], prompt="y", overwrite=True)
    assert tables(out) == ["b.parquet"]


NAMES = st.sampled_from([f"{n}.png" for n in range(8)])
NIGHT = st.fixed_dictionaries(
    {
        "written": st.dictionaries(NAMES, st.sampled_from(["one", "two", "bad"]), max_size=4),
        "deleted": st.sets(NAMES, max_size=4),
        "kill": st.none() | st.integers(0, 7),
        "forgets": st.booleans(),
        "limit": st.none() | st.none() | st.integers(1, 4),
        "retry_errors": st.booleans(),
        "ends": st.booleans(),
    }
)


@settings(max_examples=50, deadline=None)
@given(st.lists(NIGHT, min_size=1, max_size=6))
def test_whatever_comes_goes_and_changes_every_file_there_is_answered_and_no_answer_is_lost(
    tmp_path_factory, nights
):
    folder = tmp_path_factory.mktemp("nights")
    out, photos = folder / "out", folder / "photos"
    photos.mkdir()
    said: dict[str, set[str]] = {}
    stands: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finding, "FILES_PER_UNIT", 3)
        for plan in nights:
            for name, content in plan["written"].items():
                lay(photos, **{name[:-4]: content})
                said.setdefault(name, set()).add(content)
            for name in plan["deleted"] & set(os.listdir(photos)):
                (photos / name).unlink()
            how = {"retry_errors": plan["retry_errors"], "on_change": "answer"}
            if plan["forgets"]:
                forget(out)
            if plan["kill"] is not None:
                killed_night(out, (photos,), plan["kill"], **how)
                stands = answers(out, limited=False)
            if plan["limit"] is not None:
                night(out, photos, limit=plan["limit"], **how)
                stands |= answers(out, limited=False)  # with --retry-errors it may mend a row
            if not plan["ends"] and plan is not nights[-1]:
                continue
            night(out, photos, **how)
            found = answers(out)
            now = {ident.rpartition("/")[2]: answer for ident, answer in found.items()}
            assert len(now) == len(found), "a file has rows in two units"
            for name in os.listdir(photos):
                assert now[name] == answer_of((photos / name).read_bytes()), name
            assert found.keys() >= stands.keys(), "an answer was lost"
            for name, answer in now.items():
                assert answer in {answer_of(c.encode()) for c in said[name]}
                if not (photos / name).exists():
                    assert {
                        i: a for i, a in found.items() if i.endswith(name)
                    }.items() <= stands.items()
            stands = found
            assert night(out, photos).todo == [], "the same run again has nothing to do"


def answer_of(data: bytes) -> str:
    return "image_unreadable" if data.startswith(BAD) else text_of(data)
