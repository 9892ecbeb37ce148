"""Records gathered in an index say what they said one by one, whenever a run was killed and whatever lies there."""

import gzip
import json
import random
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llava_batch.errors import OutputConflict
from llava_batch.patience import BRIEF
from llava_batch.storage import delete_file, list_files, locate, write_whole
from llava_batch.write import manifest as manifests
from llava_batch.write.changes import compare
from llava_batch.write.committer import Committer
from llava_batch.write.index import INDEX, packed
from llava_batch.write.manifest import Manifest, Vanished
from llava_batch.write.membership import Membership
from llava_batch.write.record import Record
from tests.outputs import EMPTY, RUN, answer, end, ledger_of, table, unit


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few files are many."""
    monkeypatch.setattr(manifests, "GATHER_FILES", 4)
    monkeypatch.setattr(manifests, "KEEP_FILES", 2)
    monkeypatch.setattr(manifests, "INDEX_FILES", 3)


def record(name: str, rows: int = 1) -> Record:
    return Record(unit=name, table=f"{name}.parquet", table_bytes=10, fingerprint="f", input="in",
                  source="s", rows=rows, images=1, errors={"image_broken": 1})  # fmt: skip


def rows_of(first: int) -> Membership:
    return Membership(input="in", members=(), stamps=(), rows=(first, first + 1))


def at(out: Path) -> Manifest:
    """The folder's manifest as a new run reads it."""
    made = Manifest(locate(str(out)), BRIEF)
    base = f"{out}/_manifest/"
    made.load([f.path.removeprefix(base) for f in list_files(locate(str(out / "_manifest")))])
    return made


def said(made: Manifest) -> tuple[dict[str, int], dict[str, Any]]:
    return {n: r.rows for n, r in made.records.items()}, {
        n: m.rows for n, m in made.members.items() if m.rows
    }


def names(out: Path) -> list[str]:
    return sorted(
        str(p.relative_to(out / "_manifest")) for p in (out / "_manifest").rglob("*") if p.is_file()
    )


def test_many_records_become_one_file_that_says_the_same(tmp_path):
    made = at(tmp_path)
    for n in range(4):
        made.put(record(f"sub/{n}", n))
        made.remember({f"sub/{n}": Membership(input="i", members=("x",), stamps=((1, None),))})
    made.gather()
    made.rest()
    (index,) = names(tmp_path)
    assert index.startswith(INDEX)
    again = at(tmp_path)
    assert again.records == made.records and again.members == made.members
    assert len(gzip.decompress((tmp_path / "_manifest" / index).read_bytes()).splitlines()) == 5


def test_a_folder_of_a_few_units_has_no_index(tmp_path):
    made = at(tmp_path)
    made.put(record("a"))
    made.rest()
    assert names(tmp_path) == ["a.json"]


class Killed(BaseException):
    pass


class Life:
    """How many writes and deletions a run has before it is killed."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Killed


class SweepsAtOnce:
    def __init__(self, life: Life) -> None:
        self._life = life

    def sweep(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._life.step()
            Path(path).unlink(missing_ok=True)

    def spare(self, path: str) -> None:
        pass

    def rest(self, wait_s: float) -> None:
        pass


@pytest.mark.parametrize("seed", range(12))
def test_a_kill_at_any_step_loses_nothing_and_brings_nothing_back(tmp_path, monkeypatch, seed):
    chance = random.Random(seed)
    life = Life(0)

    def dying(call: Any) -> Any:
        def stepped(*args: Any) -> None:
            life.step()
            call(*args)

        return stepped

    monkeypatch.setattr(manifests, "write_whole", dying(write_whole))
    monkeypatch.setattr(manifests, "delete_file", dying(delete_file))
    records: dict[str, int] = {}
    members: dict[str, Any] = {}
    units = [f"{n}" for n in range(9)]
    for _ in range(8):
        made = at(tmp_path)
        assert said(made) == (records, members)
        made._sweeper = SweepsAtOnce(life)  # type: ignore[assignment]
        life.steps = chance.randrange(1, 30)
        with suppress(Killed):
            while True:
                name, what = chance.choice(units), chance.randrange(6)
                before = dict(records), dict(members)
                after = dict(records), dict(members)
                if what < 2:
                    after[0][name] = chance.randrange(99)
                elif what == 2:
                    after[0].pop(name, None)
                elif what == 3:
                    after[1][name] = (n := chance.randrange(99), n + 1)
                elif what == 4:
                    after[1].pop(name, None)
                records, members = before
                try:
                    if what < 2:
                        made.put(record(name, after[0][name]))
                    elif what == 2:
                        made.remove(name)
                    elif what == 3:
                        made.remember({name: rows_of(after[1][name][0])})
                    elif what == 4:
                        made.forget_members(name)
                    else:
                        made.gather(whole=chance.random() < 0.3)
                except Killed:
                    there = said(at(tmp_path))
                    assert there in (before, after)
                    records, members = there
                    raise
                records, members = after
                assert said(made) == after


def test_memberships_of_many_units_are_written_in_one(tmp_path):
    made = at(tmp_path)
    made.remember({"0": rows_of(7)})
    made.remember({f"{n}": rows_of(n) for n in range(50)})
    assert len(names(tmp_path)) == 2  # the single file of `0`, which has the last word
    assert said(at(tmp_path))[1] == {f"{n}": (n, n + 1) for n in range(50)}


def test_of_two_records_for_one_unit_that_of_its_own_name_counts(tmp_path):
    made = at(tmp_path)
    made.put(record("a", 1))
    copy = tmp_path / "_manifest" / "a (copy).json"
    copy.write_bytes(record("a", 2).to_json())
    foreign = tmp_path / "_manifest" / "notes.json"
    foreign.write_text('{"mine": 1}')
    (tmp_path / "_manifest" / "_index").mkdir()
    (tmp_path / "_manifest" / "_index" / "README").write_text("?")
    again = at(tmp_path)
    assert said(again)[0] == {"a": 1}
    again.gather(1)
    again.rest()
    assert copy.exists() and foreign.exists(), "what is not ours is left alone"
    assert said(at(tmp_path))[0] == {"a": 1}


@pytest.mark.parametrize("damage", ["cut", "foreign", "newer"])
def test_an_index_that_does_not_read_is_refused_and_says_what_to_do(tmp_path, damage):
    made = at(tmp_path)
    made.put(record("a"))
    made.gather(1)
    made.rest()
    (name,) = names(tmp_path)
    path = tmp_path / "_manifest" / name
    data = path.read_bytes()
    newer = gzip.compress(b'{"index": 2, "whole": false}\n')
    path.write_bytes({"cut": data[:-9], "foreign": b"hello", "newer": newer}[damage])
    with pytest.raises(OutputConflict, match=r"_index/.*does not read .*delete it"):
        at(tmp_path)


def test_a_record_that_only_a_newer_version_knows_stays_in_the_index(tmp_path):
    lines = [{"unit": "new", "record": record("new").said() | {"colour": "red"}}]
    path = tmp_path / "_manifest" / "_index" / "00000001-0.index"
    path.parent.mkdir(parents=True)
    path.write_bytes(packed(lines, is_whole=False))
    made = at(tmp_path)
    made.put(record("a"))
    made.gather(1, whole=True)
    made.rest()
    (name,) = names(tmp_path)
    left = gzip.decompress((tmp_path / "_manifest" / name).read_bytes()).splitlines()[1:]
    assert {json.loads(line)["unit"] for line in left} == {"a", "new"}


def test_a_folder_that_is_gathered_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    out = tmp_path / "out"
    units = [unit(f"{n}") for n in range(6)]
    first = ledger_of(out)
    first.begin(units, EMPTY)
    made = Committer(first, units, EMPTY, RUN)
    load, calls = Manifest.load, []

    def gathered_meanwhile(self: Manifest, names: list[str]) -> None:
        calls.append(len(names))
        if len(calls) == 1:
            made.close()
        load(self, names)

    made.add(table(*(r for u in units[:3] for r in (answer(u.name, 0), end(u.name, 1)))))
    monkeypatch.setattr(Manifest, "load", gathered_meanwhile)
    assert len(ledger_of(out).records) == 3 and len(calls) == 2
    monkeypatch.setattr(
        Manifest, "_read_all", lambda self, names: (_ for _ in ()).throw(Vanished("x"))
    )
    with pytest.raises(OutputConflict, match="listed and not there"):
        ledger_of(out)


def test_a_run_gathers_what_an_older_version_left_and_every_later_run_goes_on(tmp_path):
    out = tmp_path / "out"
    units = [unit(f"{n}") for n in range(9)]
    for start in (0, 3, 6):
        ledger = ledger_of(out)
        todo = compare(ledger, units[: start + 3]).todo
        assert [u.name for u in todo] == [u.name for u in units[start : start + 3]]
        ledger.begin(todo, EMPTY)
        made = Committer(ledger, todo, EMPTY, RUN)
        made.add(table(*(r for u in todo for r in (answer(u.name, 0), end(u.name, 1)))))
        made.close()
    assert [n for n in names(out) if n.endswith(".json")] == ["_job.json"]
    assert compare(ledger_of(out), units).todo == []
    # Changed, forgotten, answered again: over an index as over single records.
    ledger = ledger_of(out)
    ledger.forget(ledger.records["4"])
    assert [u.name for u in compare(ledger_of(out), units).todo] == ["4"]
    changed = [u if u.name != "5" else unit("5", source="2-2") for u in units]
    ledger = ledger_of(out)
    todo = compare(ledger, changed, on_change="answer").todo
    assert [u.name for u in todo] == ["4", "5"]
    ledger.begin(todo, EMPTY)
    made = Committer(ledger, todo, EMPTY, RUN)
    made.add(table(*(r for u in todo for r in (answer(u.name, 0), end(u.name, 1)))))
    made.close()
    assert compare(ledger_of(out), changed).todo == []
