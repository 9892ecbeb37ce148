"""Which questions joined no image: told as units are committed, with old tables left unread."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.driver.joined import Joined
from llava_batch.prompts.questions import Questions, read_questions
from llava_batch.storage import Location
from llava_batch.write.committer import Committer
from llava_batch.write.ledger import Ledger
from tests.away import Store
from tests.outputs import EMPTY, RUN, answer, end, ledger_at, table, unit

PIXEL = b"not really a picture"
SHA256 = hashlib.sha256(PIXEL).hexdigest()
SETTINGS: dict[str, Any] = {"prompt": "x", "questions": "hash of the file"}


@pytest.fixture
def questions(tmp_path: Path) -> Questions:
    return questions_of(tmp_path)


def questions_of(folder: Path) -> Questions:
    """Of images 0 … 7, and of one that is known by its bytes."""
    lines = [{"question_id": n, "image": f"{n}.jpg", "text": "What?"} for n in range(8)]
    lines.append({"question_id": 8, "image": f"sha256:{SHA256}", "text": "What?"})
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_questions(str(path))


def run(
    store: Store, questions: Questions, units: dict[str, list[int]], killed: bool = False,
    source: str = "1-1", retry: bool = False,
) -> int | None:  # fmt: skip
    """A run that answers `units`, each with the images of these numbers; one that is killed says
    nothing at its end."""
    ledger = ledger_at(Ledger(Location(store.fs, "out", "o"), "parquet"), **SETTINGS)
    again = frozenset({"0"}) if retry else None
    todo = [unit(name, source=source, retry=again) for name in units]
    ledger.begin(todo, EMPTY)
    joined = Joined(questions, ledger)
    made = Committer(ledger, todo, EMPTY, RUN, joined.mark)
    for name, keys in units.items():
        rows = [answer(name, n, key=str(key)) for n, key in enumerate(keys)]
        made.add(table(*rows, end(name, len(keys))))
    return None if killed else joined.count_unjoined()


def test_what_joined_nothing_is_told_from_key_and_bytes(questions) -> None:
    store = Store()
    ledger = ledger_at(Ledger(Location(store.fs, "out", "o"), "parquet"), **SETTINGS)
    ledger.begin([unit("a")], EMPTY)
    joined = Joined(questions, ledger)
    made = Committer(ledger, [unit("a")], EMPTY, RUN, joined.mark)
    rows = [answer("a", 0, key="1", error="image_unreadable"),
            answer("a", 1, key="x") | {"image_sha256": SHA256}]  # fmt: skip
    made.add(table(*rows, end("a", 2)))
    assert joined.count_unjoined() == 7


def test_a_folder_that_grows_is_not_read_again(questions) -> None:
    # Every table was, at the end of every run, be there a new one or not.
    store = Store()
    assert run(store, questions, {"a": [0, 1], "b": [2]}) == 6
    store.opened.clear()
    assert run(store, questions, {"c": [3]}) == 5
    assert run(store, questions, {}) == 5
    assert [path for path in store.opened if path.endswith(".parquet")] == []


def test_what_a_killed_run_answered_is_read_once(questions) -> None:
    store = Store()
    run(store, questions, {"a": [0, 1]})
    run(store, questions, {"b": [2]}, killed=True)
    store.opened.clear()
    assert run(store, questions, {"c": [3]}) == 5
    assert run(store, questions, {"d": [4]}) == 4
    assert [path for path in store.opened if path.endswith(".parquet")] == ["out/b.parquet"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"questions": "hash of the file"}',
                                  b'{"questions": "another", "units": {"a": "1-1"}, "rows": "////"}'])  # fmt: skip
def test_a_side_file_that_says_nothing_counts_for_nothing(questions, data) -> None:
    store = Store()
    run(store, questions, {"a": [0, 1]})
    store.objects["out/_manifest/_joined.json"] = data
    assert run(store, questions, {"b": [2]}) == 6


def before(store: Store, questions: Questions, *anew: str) -> set[str]:
    """The images whose questions have one in the folder before a run that answers `anew`."""
    ledger = ledger_at(Ledger(Location(store.fs, "out", "o"), "parquet"), **SETTINGS)
    known = Joined(questions, ledger).begin(set(anew))
    return set(questions.table.filter(pa.array(known))["question_id"].to_pylist())


def test_a_run_begins_with_what_the_ones_before_it_joined(questions) -> None:
    store = Store()
    run(store, questions, {"a": [0, 1], "b": [2]})
    run(store, questions, {"c": [3]}, killed=True)
    store.opened.clear()
    assert before(store, questions) == {"0", "1", "2", "3"}
    assert [path for path in store.opened if path.endswith(".parquet")] == ["out/c.parquet"]
    assert before(store, questions, "a") == {"2", "3"}  # what `a` held is answered anew
    assert before(store, questions, "c", "d") == {"0", "1", "2"}


def test_what_was_known_at_the_beginning_is_not_read_at_the_end(questions) -> None:
    store = Store()
    run(store, questions, {"a": [0, 1]})
    run(store, questions, {"b": [2]}, killed=True)
    ledger = ledger_at(Ledger(Location(store.fs, "out", "o"), "parquet"), **SETTINGS)
    ledger.begin([], EMPTY)
    joined = Joined(questions, ledger)
    joined.begin(set())
    store.opened.clear()
    assert joined.count_unjoined() == 6
    assert [path for path in store.opened if path.endswith(".parquet")] == []


def test_a_retry_leaves_the_other_units_unread(questions) -> None:
    store = Store()
    assert run(store, questions, {"a": [0], "b": [1]}) == 7
    store.opened.clear()
    assert run(store, questions, {"a": [0]}, retry=True) == 7
    assert "out/b.parquet" not in store.opened


RUNS = st.lists(
    st.tuples(
        st.dictionaries(
            st.sampled_from("abc"), st.lists(st.integers(0, 7), max_size=3, unique=True)
        ),
        st.booleans(),
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(runs=RUNS)
def test_the_figure_is_what_the_tables_say_whatever_ran_before(tmp_path_factory, runs) -> None:
    questions, store = questions_of(tmp_path_factory.mktemp("q")), Store()
    stands: dict[str, list[int]] = {}
    for number, (units, killed) in enumerate(runs):
        told = run(store, questions, units, killed, source=f"{number}")
        stands |= units
        joined = {key for keys in stands.values() for key in keys}
        assert told is None or told == 9 - len(joined)
