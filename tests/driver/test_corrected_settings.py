"""Settings that could answer nothing: refused beforehand, and a folder where they did takes corrected ones."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llava_batch.driver import cluster
from llava_batch.driver.plan import Plan, make_plan
from llava_batch.driver.refusals import refuse_what_is_too_long
from llava_batch.driver.settle import settle
from llava_batch.errors import OutputConflict, UsageError
from llava_batch.job import Job
from llava_batch.pipeline import run
from llava_batch.write import committer
from llava_batch.write.committer import Committer
from tests.outputs import EMPTY, RUN, answer, end, table, tables
from tests.shards import picture, put, tar_bytes


def corpus(folder: Path, *names: str) -> str:
    for name in names:
        members = {f"{n}.png": picture(n) for n in range(2)}
        put(folder / "in" / f"{name}.tar", tar_bytes(members))
    return str(folder / "in")


def plan_of(tmp_path: Path, **how: Any) -> Plan:
    return make_plan(
        settle(Job(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), **how))
    )


def answered(plan: Plan, *broken: int, last_record: bool = True) -> None:
    """The plan's units answered, images of these numbers in error; the last one's record perhaps not."""
    plan.ledger.begin(plan.todo, EMPTY)
    made = Committer(plan.ledger, plan.todo, EMPTY, RUN)
    for one in plan.todo:
        rows = [
            answer(one.name, n, error="prompt_too_long" if n in broken else None) for n in range(2)
        ]
        made.add(table(*rows, end(one.name, 2)))
    if not last_record:
        (Path(plan.ledger.out.path) / "_manifest" / f"{plan.todo[-1].name}.json").unlink()


def test_a_folder_without_a_good_row_takes_other_settings(tmp_path: Path) -> None:
    # `holds answers of another run`, where there was not one answer.
    corpus(tmp_path, "a", "b")
    answered(plan_of(tmp_path, max_new_tokens=4000), 0, 1)
    plan = plan_of(tmp_path, max_new_tokens=40)
    assert [unit.name for unit in plan.todo] == ["a", "b"]
    answered(plan)
    out = tmp_path / "out"
    assert tables(out) == ["a.parquet", "b.parquet"]
    assert set(pq.read_table(out / "a.parquet")["status"].to_pylist()) == {"ok"}
    again = plan_of(tmp_path, max_new_tokens=40)
    assert again.todo == [] and again.ledger.is_tidy
    with pytest.raises(OutputConflict, match="--max-new-tokens was 40, is 4000"):
        plan_of(tmp_path, max_new_tokens=4000)


def test_what_was_left_out_is_said_in_words(tmp_path: Path) -> None:
    # `--keep was [], is ['label']; --system was None, is 'Be brief.'`
    corpus(tmp_path, "a")
    answered(plan_of(tmp_path), 0)
    asked = {"question": ("Why?", "How?"), "system": "Be brief."}
    with pytest.raises(OutputConflict) as refused:
        plan_of(tmp_path, **asked)
    assert "--question was not given, is 'Why?', 'How?'; " in str(refused.value)
    assert "--system was not given, is 'Be brief.'; " in str(refused.value)


def test_nothing_of_the_old_settings_stays_beside_the_new(tmp_path: Path) -> None:
    corpus(tmp_path, "a", "b")
    answered(plan_of(tmp_path, prompt="x"), 0, 1)
    (tmp_path / "in" / "b.tar").unlink()
    answered(plan_of(tmp_path, prompt="y", format="arrow"))
    assert tables(tmp_path / "out") == ["a.arrow"]
    records = {p.name for p in (tmp_path / "out" / "_manifest").glob("*.json")}
    assert records == {"a.json", "_job.json"}


def test_one_good_row_is_enough_to_refuse_as_before(tmp_path: Path) -> None:
    corpus(tmp_path, "a", "b")
    answered(plan_of(tmp_path), 0)
    with pytest.raises(OutputConflict, match="holds answers of another run: --prompt was"):
        plan_of(tmp_path, prompt="Why?")


@pytest.mark.parametrize("limit", [None, 2])
def test_good_rows_that_no_record_speaks_of_are_refused_too(
    tmp_path: Path, limit: int | None
) -> None:
    """A kill came between the table and its record; or the rows are a limited run's."""
    corpus(tmp_path, "a")
    answered(plan_of(tmp_path, limit=limit), 0, last_record=limit is not None)
    assert not (tmp_path / "out" / "_manifest" / "a.json").exists()
    with pytest.raises(OutputConflict, match="holds answers of another run"):
        plan_of(tmp_path, prompt="Why?")
    assert tables(tmp_path / "out") == ["a.parquet"]


@pytest.mark.parametrize("code", [None, "prompt_too_long"])
def test_good_rows_of_a_unit_that_a_kill_left_open_are_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str | None
) -> None:
    """They stand in a part, until the unit is whole."""
    monkeypatch.setattr(committer, "PART_ROWS", 1)
    corpus(tmp_path, "a")
    plan = plan_of(tmp_path)
    plan.ledger.begin(plan.todo, EMPTY)
    Committer(plan.ledger, plan.todo, EMPTY, RUN).add(table(answer("a", 0, error=code)))
    assert len([*(tmp_path / "out").rglob("*.part")]) == 1
    if code is None:
        with pytest.raises(OutputConflict, match="holds answers of another run"):
            plan_of(tmp_path, prompt="Why?")
        return
    answered(plan_of(tmp_path, prompt="Why?"))
    assert [*(tmp_path / "out").rglob("*.part")] == []


def test_a_run_that_was_killed_before_its_first_table_binds_nobody(tmp_path: Path) -> None:
    corpus(tmp_path, "a")
    plan = plan_of(tmp_path)
    plan.ledger.begin(plan.todo, EMPTY)
    assert [unit.name for unit in plan_of(tmp_path, prompt="Why?").todo] == ["a"]


def test_tables_of_another_hand_are_neither_read_nor_removed(tmp_path: Path) -> None:
    corpus(tmp_path, "a")
    answered(plan_of(tmp_path), 0, 1)
    pq.write_table(pq.read_table(tmp_path / "out" / "a.parquet").replace_schema_metadata(None),
                   tmp_path / "out" / "mine.parquet")  # fmt: skip
    answered(plan_of(tmp_path, prompt="Why?"))
    assert tables(tmp_path / "out") == ["a.parquet", "mine.parquet"]


def looked_at(plan: Plan) -> None:
    refuse_what_is_too_long(plan.settled, plan.checkpoint)


LONG = "word " * 3000


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"max_new_tokens": 100_000}, "--max-new-tokens 100000: an image and its prompt take "),
        ({"system": LONG}, "--system 'word word"),
        ({"prompt": LONG}, "--prompt 'word word"),
        ({"question": ("What?", LONG)}, "--question 'word word"),
        ({"question": ("What?",), "choices": ("a", LONG.strip())}, "--choices 'word word"),
        ({"recipe": "detail", "system": LONG}, "--system 'word word"),
        ({"question": ("What?", "Why?"), "dialogue": True, "max_new_tokens": 1000}, "; give at most "),
        ({"recipe": "conversation", "max_new_tokens": 2000}, "--max-new-tokens 2000: "),
    ],
)  # fmt: skip
def test_what_no_image_can_be_answered_under_is_refused(
    tmp_path: Path, how: dict[str, Any], told: str
) -> None:
    # 104 rows of `prompt_too_long`, and a folder that took no other settings.
    corpus(tmp_path, "a")
    with pytest.raises(UsageError) as error:
        looked_at(plan_of(tmp_path, **how))
    assert str(error.value).startswith(told) or told in str(error.value)
    assert len(str(error.value)) < 300


def test_the_most_that_is_named_is_taken(tmp_path: Path) -> None:
    corpus(tmp_path, "a")
    with pytest.raises(UsageError) as error:
        looked_at(plan_of(tmp_path, max_new_tokens=9999))
    most = int(str(error.value).rpartition("give at most ")[2])
    looked_at(plan_of(tmp_path, max_new_tokens=most))
    with pytest.raises(UsageError):
        looked_at(plan_of(tmp_path, max_new_tokens=most + 1))


def questions(tmp_path: Path, *images: str) -> str:
    path = tmp_path / "questions.jsonl"
    rows = ({"question_id": n, "image": name, "text": "What?"} for n, name in enumerate(images))
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_questions_of_none_of_the_loose_files_are_refused(tmp_path: Path) -> None:
    # Exit status 0, and `104 images had no question`.
    for n in range(3):
        put(tmp_path / "in" / f"{n}.png", picture(n))
    with pytest.raises(UsageError, match="none of the file's questions joins any of 3 images"):
        plan_of(tmp_path, questions=questions(tmp_path, "nine.png"))
    plan_of(tmp_path, questions=questions(tmp_path, "nine.png", "2.png"))
    plan_of(tmp_path, questions=questions(tmp_path, "sha256:" + "0" * 64))


def test_questions_of_a_shards_images_may_join_what_is_in_it(tmp_path: Path) -> None:
    corpus(tmp_path, "a")
    put(tmp_path / "in" / "loose.png", picture(9))
    plan_of(tmp_path, questions=questions(tmp_path, "nine.png"))


def test_it_is_refused_before_ray_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path, "a")
    monkeypatch.setattr(cluster, "connected", lambda: pytest.fail("Ray was started"))
    job = Job(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), max_new_tokens=100_000)
    with pytest.raises(UsageError, match="--max-new-tokens 100000"):
        run(job)
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_too_long_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The tokenizer told of it too, in front, and of indexing errors that nobody would meet.
    corpus(tmp_path, "a")
    theirs = logging.getLogger("transformers")
    theirs.addHandler(caplog.handler)
    try:
        with pytest.raises(UsageError):
            looked_at(plan_of(tmp_path, prompt=LONG))
    finally:
        theirs.removeHandler(caplog.handler)
    assert "Token indices" not in caplog.text
