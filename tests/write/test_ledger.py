"""What an output folder holds decides what is answered: resume, refusal, change, ownership."""

import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from llava_batch.errors import OutputConflict, UsageError
from llava_batch.read.find import find_units
from llava_batch.storage import locate, without_credentials
from llava_batch.unit import Unit
from llava_batch.write import owner as ownership
from llava_batch.write.changes import compare
from llava_batch.write.committer import Committer
from llava_batch.write.owner import Ownership
from tests.outputs import EMPTY, RUN, answer, end, ledger_of, table, tables, unit
from tests.shards import picture, put, put_parquet


def answered(out: Path, *units: Unit, keep: pa.Schema = EMPTY, **how) -> None:
    """A run over `units`, one row each."""
    ledger = ledger_of(out, **how)
    compare(ledger, units, on_change="answer", overwrite=how.get("overwrite", False))
    ledger.begin(units, keep)
    made = Committer(ledger, list(units), EMPTY, RUN)
    made.add(table(*(r for u in units for r in (answer(u.name, 0), end(u.name, 1)))))


def manifest(out: Path, name: str) -> Path:
    return out / "_manifest" / name


def test_a_committed_unit_is_known_to_the_next_run(tmp_path):
    answered(tmp_path, unit("a"), unit("sub/b"))
    ledger = ledger_of(tmp_path)
    assert [ledger.is_committed(unit(n)) for n in ("a", "sub/b", "c")] == [True, True, False]


def test_a_table_that_a_kill_left_without_its_record_is_adopted(tmp_path):
    answered(tmp_path, unit("a"))
    manifest(tmp_path, "a.json").unlink()
    ledger = ledger_of(tmp_path)
    assert ledger.is_committed(unit("a"))
    assert not manifest(tmp_path, "a.json").exists(), "looking changes nothing"
    ledger.begin([], EMPTY)
    assert ledger_of(tmp_path).records["a"].rows == 1


def test_a_table_without_a_record_that_answers_something_else_is_not_adopted(tmp_path):
    answered(tmp_path, unit("a"))
    manifest(tmp_path, "a.json").unlink()
    assert not ledger_of(tmp_path).is_committed(unit("a", source="2-2"))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_record_whose_table_is_gone_or_cut_counts_for_nothing(tmp_path, damage):
    # The record alone was believed: a deleted table stayed lost for ever.
    answered(tmp_path, unit("a"))
    path = tmp_path / "a.parquet"
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[:-9])
    assert not ledger_of(tmp_path).is_committed(unit("a"))


def test_a_retried_table_whose_record_a_kill_prevented_is_taken_as_it_is(tmp_path):
    answered(tmp_path, unit("a"))
    old = manifest(tmp_path, "a.json").read_bytes()
    ledger = ledger_of(tmp_path)
    whole = ledger.read_table("a")
    assert whole is not None
    text = pa.array(["other " * 50])
    ledger.tables.write("a", whole.set_column(whole.schema.get_field_index("answer"),
                                                   whole.schema.field("answer"), text))  # fmt: skip
    assert manifest(tmp_path, "a.json").read_bytes() == old
    ledger = ledger_of(tmp_path)
    assert ledger.is_committed(unit("a"))
    assert ledger.records["a"].table_bytes == (tmp_path / "a.parquet").stat().st_size


def test_a_changed_input_is_answered_again(tmp_path):
    answered(tmp_path, unit("a"))
    assert not ledger_of(tmp_path).is_committed(unit("a", source="2-2"))


def test_another_place_with_a_unit_of_the_same_name_is_refused(tmp_path):
    # The answers of the first folder were replaced by those of the second without a word.
    answered(tmp_path, unit("a"))
    other = unit("a", path="/elsewhere/a.tar", source="2-2")
    with pytest.raises(OutputConflict, match=r"answered from /in/a\.tar"):
        compare(ledger_of(tmp_path), [other])
    compare(ledger_of(tmp_path, overwrite=True), [other], overwrite=True)
    moved = replace(other, source="1-1")
    compare(ledger_of(tmp_path), [moved])
    assert ledger_of(tmp_path).is_committed(moved)


def test_other_settings_are_refused_with_each_field_named(tmp_path):
    answered(tmp_path, unit("a"), seed=1)
    with pytest.raises(OutputConflict, match="--prompt was 'x', is 'y'; --seed was 1, is 2"):
        ledger_of(tmp_path, prompt="y", seed=2)


def test_a_setting_that_an_earlier_version_did_not_know_had_its_default(tmp_path):
    # A new version with one flag more had another fingerprint, and answered a whole lake again.
    answered(tmp_path, unit("a"))
    assert ledger_of(tmp_path, top_k=0, repetition_penalty=1.0).is_committed(unit("a"))
    with pytest.raises(OutputConflict, match="--top-k was 0, is 5"):
        ledger_of(tmp_path, top_k=5)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"{}", b'{"settings": 1, "format": "parquet", "keep": ""}',
             b'{"settings": {}, "format": "parquet", "fingerprint": "", "keep": "AAAA"}', b"\xff"]
)  # fmt: skip
def test_a_job_file_that_says_nothing_is_refused_by_name_and_overwritten_on_demand(tmp_path, data):
    # An empty one, as a full disk leaves it, ended the start with a traceback.
    answered(tmp_path, unit("a"))
    manifest(tmp_path, "_job.json").write_bytes(data)
    with pytest.raises(OutputConflict, match=r"_manifest/_job\.json: does not say .*--overwrite"):
        ledger_of(tmp_path)
    answered(tmp_path, unit("a"), overwrite=True)
    assert ledger_of(tmp_path).is_committed(unit("a"))


def test_another_format_is_refused(tmp_path):
    answered(tmp_path, unit("a"))
    with pytest.raises(OutputConflict, match="holds parquet tables"):
        ledger_of(tmp_path, format="arrow")


def test_overwrite_replaces_and_leaves_no_table_of_the_old_settings_or_format(tmp_path):
    # The old tables stayed beside the new ones: every row twice.
    answered(tmp_path, unit("a"), unit("b"))
    answered(tmp_path, unit("a"), overwrite=True, format="arrow", prompt="y")
    assert tables(tmp_path) == ["a.arrow"]
    assert ledger_of(tmp_path, format="arrow", prompt="y").records.keys() == {"a"}


def test_overwrite_with_the_same_settings_answers_all_of_the_input_again(tmp_path):
    # It did nothing: all was committed already.
    answered(tmp_path, unit("a"), unit("b"), unit("c"))
    ledger = ledger_of(tmp_path, overwrite=True)
    assert [ledger.is_committed(unit(n)) for n in "abc"] == [False] * 3
    answered(tmp_path, unit("a"), overwrite=True)
    assert tables(tmp_path) == ["a.parquet", "b.parquet", "c.parquet"]


def test_an_overwrite_that_was_killed_goes_on_where_it_was(tmp_path):
    answered(tmp_path, unit("a"), unit("b"))
    old = (tmp_path / "a.parquet").stat()
    for path in tmp_path.glob("*.parquet"):
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns - 10**9))
    killed = ledger_of(tmp_path, overwrite=True)
    killed.begin([unit("a"), unit("b")], EMPTY)
    made = Committer(killed, [unit("a"), unit("b")], EMPTY, RUN)
    made.add(table(answer("a", 0), end("a", 1)))
    resumed = ledger_of(tmp_path, overwrite=True)
    assert [resumed.is_committed(unit(n)) for n in "ab"] == [True, False]
    resumed.begin([unit("b")], EMPTY)
    Committer(resumed, [unit("b")], EMPTY, RUN).add(table(answer("b", 0), end("b", 1)))
    resumed.finish()
    assert not ledger_of(tmp_path, overwrite=True).is_committed(unit("a")), "another overwrite"
    assert ledger_of(tmp_path).is_committed(unit("a"))


def test_an_overwrite_that_is_given_up_leaves_the_answers_that_stand(tmp_path):
    answered(tmp_path, unit("a"), unit("b"))
    ledger_of(tmp_path, overwrite=True).begin([unit("a"), unit("b")], EMPTY)
    plain = ledger_of(tmp_path)
    assert [plain.is_committed(unit(n)) for n in "ab"] == [True, True]
    plain.begin([], EMPTY)
    assert not manifest(tmp_path, "_overwriting.json").exists()


def test_a_file_that_grew_until_it_is_split_leaves_no_table_of_the_whole(tmp_path):
    answered(tmp_path, unit("a"), unit("z"))
    parts = [replace(unit(f"a-0000{n}", source="2-2"), path="/in/a.tar") for n in range(2)]
    answered(tmp_path, *parts, unit("z"))
    assert tables(tmp_path) == ["a-00000.parquet", "a-00001.parquet", "z.parquet"]


def test_units_that_are_not_named_any_more_stand_as_they_are(tmp_path):
    answered(tmp_path, unit("a"), unit("b"))
    answered(tmp_path, unit("c"))
    assert tables(tmp_path) == ["a.parquet", "b.parquet", "c.parquet"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"unit": "a"}'])
def test_a_record_that_does_not_parse_is_none_and_the_table_is_adopted(tmp_path, data):
    answered(tmp_path, unit("a"))
    manifest(tmp_path, "a.json").write_bytes(data)
    assert ledger_of(tmp_path).is_committed(unit("a"))


def test_half_written_files_are_ignored_and_cleared_away(tmp_path):
    answered(tmp_path, unit("a"))
    leftovers = [manifest(tmp_path, "_tmp-00"), tmp_path / "_tmp-11"]
    for path in leftovers:
        path.write_bytes(b"half")
    ledger_of(tmp_path).begin([], EMPTY)
    assert not any(path.exists() for path in leftovers)


@pytest.mark.parametrize(
    "kind",
    [pa.float64(), pa.float32(), pa.list_(pa.string()), pa.timestamp("us"), pa.int8(),
     pa.struct([("a", pa.string())]), pa.decimal128(9, 2), pa.large_string()],
    ids=str,
)  # fmt: skip
def test_kept_columns_of_every_type_are_the_same_after_a_resume(tmp_path, kind):
    # `double` was written down and not understood when read back: such runs could not be resumed.
    keep = pa.schema([("score", kind)])
    ledger_of(tmp_path).begin([], keep)
    assert ledger_of(tmp_path).keep == keep


def loose(folder: Path, *numbers: int) -> None:
    for number in numbers:
        put(folder / f"{number:03}.png", picture(number))


def test_a_folder_that_grows_makes_new_units_and_keeps_the_old(tmp_path, monkeypatch):
    monkeypatch.setattr("llava_batch.read.loose_units.FILES_PER_UNIT", 2)
    loose(tmp_path / "in", 1, 3, 5)
    out = tmp_path / "out"
    first = find_units([str(tmp_path / "in")])
    answered(out, *first)
    loose(tmp_path / "in", 0, 2)
    ledger = ledger_of(out)
    units = find_units([str(tmp_path / "in")], ledger.before.members)
    assert [(u.name, u.members) for u in units] == [
        ("in-00000", ("001.png", "003.png")),
        ("in-00001", ("005.png",)),
        ("in-00002", ("000.png", "002.png")),
    ]
    assert [ledger.is_committed(u) for u in units] == [True, True, False]


def test_another_folder_of_the_same_name_is_refused(tmp_path):
    loose(tmp_path / "x" / "in", 1)
    loose(tmp_path / "y" / "in", 2)
    answered(tmp_path / "out", *find_units([str(tmp_path / "x" / "in")]))
    ledger = ledger_of(tmp_path / "out")
    units = find_units([str(tmp_path / "y" / "in")], ledger.before.members)
    with pytest.raises(UsageError, match="none of the files"):
        compare(ledger, units)


def test_a_real_shard_that_is_touched_is_another_source(tmp_path):
    path = put_parquet(tmp_path / "a.parquet", {"image": [picture()]})
    (before,) = find_units([str(path)])
    os.utime(path, ns=(1, 1))
    (after,) = find_units([str(path)])
    assert (before.name, before.input) == (after.name, after.input)
    assert before.source != after.source


def test_a_run_that_began_meanwhile_is_noticed_before_anything_is_written(tmp_path):
    late = ledger_of(tmp_path)
    answered(tmp_path, unit("a"), prompt="y")
    with pytest.raises(OutputConflict, match="another run began"):
        late.begin([unit("a")], EMPTY)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ownership, "HEARTBEAT_S", 0.01)


def owner_file(out: Path, **changes) -> Path:
    """The heartbeat of another run."""
    path = manifest(out, "_owner.json")
    with Ownership(locate(str(out))):
        said = json.loads(path.read_bytes())
    return put(path, json.dumps(said | {"token": "other"} | changes).encode())


def test_a_second_run_on_one_output_is_refused_and_the_first_leaves_it_free(tmp_path):
    with Ownership(locate(str(tmp_path))), pytest.raises(OutputConflict, match="a run is writing"):
        Ownership(locate(str(tmp_path))).__enter__()
    with Ownership(locate(str(tmp_path))):
        pass
    assert not manifest(tmp_path, "_owner.json").exists()


def test_the_owner_of_another_machine_is_believed_while_it_beats(tmp_path):
    owner_file(tmp_path, machine="another")
    with pytest.raises(OutputConflict):
        Ownership(locate(str(tmp_path))).__enter__()


def test_an_owner_whose_process_is_gone_is_replaced_at_once(tmp_path):
    owner_file(tmp_path, pid=2**22 + 1)
    with Ownership(locate(str(tmp_path))) as mine:
        mine.check()


def test_an_owner_that_was_killed_and_waits_to_be_reaped_is_replaced_at_once(tmp_path) -> None:
    # Where nothing reaps (a container), the folder stayed taken for a minute.
    with subprocess.Popen(["sleep", "60"]) as owner:
        owner.kill()
        state = Path(f"/proc/{owner.pid}/stat")
        while state.exists() and ") Z " not in state.read_text():
            time.sleep(0.01)
        owner_file(tmp_path, pid=owner.pid)
        with Ownership(locate(str(tmp_path))):
            pass


def test_a_stale_owner_that_beats_no_more_is_replaced(tmp_path, quick):
    owner_file(tmp_path, machine="another", beat=time.time() - 2 * ownership.STALE_S)
    with Ownership(locate(str(tmp_path))) as mine:
        mine.check()


def test_an_owner_whose_clock_is_wrong_is_seen_to_beat(tmp_path, quick, monkeypatch):
    past = time.time() - 2 * ownership.STALE_S
    path = owner_file(tmp_path, machine="another", beat=past)
    said = json.loads(path.read_bytes())
    monkeypatch.setattr(
        time, "sleep", lambda s: path.write_text(json.dumps(said | {"beat": past + 5}))
    )
    with pytest.raises(OutputConflict):
        Ownership(locate(str(tmp_path))).__enter__()


def test_an_owner_whose_clock_is_ahead_is_believed_only_where_it_beats(
    tmp_path, quick, monkeypatch
):
    # A killed run of a machine an hour ahead blocked the folder for that hour.
    path = owner_file(tmp_path, machine="another", beat=time.time() + 3600)
    with Ownership(locate(str(tmp_path))) as mine:
        mine.check()
    path = owner_file(tmp_path, machine="another", beat=time.time() + 3600)
    said = json.loads(path.read_bytes())
    later = json.dumps(said | {"beat": said["beat"] + 5})
    monkeypatch.setattr(time, "sleep", lambda s: path.write_text(later))
    with pytest.raises(OutputConflict):
        Ownership(locate(str(tmp_path))).__enter__()


def test_a_run_that_finds_another_owner_stops_and_leaves_the_file_to_it(tmp_path, quick):
    with Ownership(locate(str(tmp_path))) as mine:
        path = manifest(tmp_path, "_owner.json")
        said = json.loads(path.read_bytes()) | {"token": "other"}
        for _ in range(500):
            path.write_text(json.dumps(said))
            time.sleep(0.01)
            if mine._lost_to:
                break
        with pytest.raises(OutputConflict, match="a run is writing"):
            mine.check()
    assert path.exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_run_that_slept_while_another_had_the_folder_stops_before_its_next_write(
    tmp_path, monkeypatch, is_there
):
    # A process that was stopped, or a machine put to sleep, went on as if nothing had been: until its next
    # heartbeat, and where the other had ended and taken its file away, for ever.
    path = manifest(tmp_path, "_owner.json")
    with Ownership(locate(str(tmp_path))) as mine:
        mine.check()
        other = json.dumps(json.loads(path.read_bytes()) | {"token": "other"})
        woken = time.time() + 2 * ownership.STALE_S
        monkeypatch.setattr(time, "time", lambda: woken)
        mine.check()
        if is_there:
            path.write_text(other)
        else:
            path.unlink()
        with pytest.raises(OutputConflict, match="writing there" if is_there else "run this again"):
            mine.check()
    assert path.exists() == is_there


SECRET = "s3://AKIAKEY:abc123secret@bucket/lake?endpoint_override=localhost:9&scheme=http"


def test_credentials_are_never_in_what_is_shown_or_written(tmp_path):
    assert without_credentials(SECRET) == "s3://bucket/lake"
    at = locate(SECRET)
    remote = unit("a", fs=at.fs, path=at.path + "/a.tar", shown=at.shown + "/a.tar")
    answered(tmp_path, remote)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    for text in (written.decode("latin-1"), at.shown, repr(remote)):
        assert "AKIAKEY" not in text and "abc123secret" not in text


def test_a_uri_that_cannot_be_opened_is_refused_without_its_credentials():
    with pytest.raises(UsageError) as refused:
        locate("s3://AKIAKEY:abc123secret@bucket/lake?no_such_option=1")
    assert "AKIAKEY" not in str(refused.value) and "abc123secret" not in str(refused.value)
