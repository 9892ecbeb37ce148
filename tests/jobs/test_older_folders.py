"""A folder that an older version answered is gone on with: nothing refused, nothing answered again."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from llava_batch.driver.plan import Plan, make_plan
from llava_batch.driver.same_run import VERSION
from llava_batch.driver.settle import settle
from llava_batch.errors import OutputConflict
from llava_batch.job import Job
from llava_batch.pipeline import run
from llava_batch.read.kinds import read_rows

FIXTURE = Path(__file__).parents[1] / "fixtures" / "answers_0_1_0"
TIME_NS = 1_700_000_000_000_000_000
"""The inputs' time of change when they were answered; a checkout gives them its own."""
WHOLE = {"dotted", "input-00000", "plain", "table"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "input").rglob("*"):
        os.utime(path, ns=(TIME_NS, TIME_NS))
    return tmp_path


def captions(folder: Path, **changes: Any) -> Job:
    given: dict[str, Any] = {
        "input": (str(folder / "input"),),
        "output": str(folder / "captions"),
        "quiet": True,
    }
    return Job(**(given | changes))


def instructions(folder: Path, **changes: Any) -> Job:
    return captions(folder, output=str(folder / "instructions"), recipe="conversation",
                    max_new_tokens=24, **changes)  # fmt: skip


def plan_of(job: Job) -> Plan:
    return make_plan(settle(job))


def hashes(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.glob("*.parquet")}


@pytest.mark.parametrize("job_of", [captions, instructions])
def test_only_the_unit_that_was_left_open_is_left_to_do(folder: Path, job_of) -> None:
    # A recipe stood in the settings as Python's repr, the model as a hash of its files' beginnings.
    plan = plan_of(job_of(folder))
    assert {unit.name for unit in plan.units} == {*WHOLE, "later"}
    assert [unit.name for unit in plan.todo] == ["later"]


def test_the_rows_in_error_of_an_older_folder_are_found_again(folder: Path) -> None:
    plan = plan_of(captions(folder, retry_errors=True))
    retried = {unit.name: unit.retry for unit in plan.todo if unit.retry}
    assert retried == {"dotted": {"2021.05.03_000"}, "table": {"k2"}}
    # By today's rules the tar's images have other names: those of then find the rows again.
    for unit in (unit for unit in plan.todo if unit.retry):
        names = [row.name for row in read_rows(unit, plan.reading)]
        assert unit.rules == 1 and set(unit.retry or ()) <= set(names) and len(names) == 4


def test_another_prompt_or_model_is_refused_in_an_older_folder_too(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputConflict, match=r"--prompt was 'Describe the image\.', is 'Why'"):
        plan_of(captions(folder, prompt="Why"))
    from llava_batch.demo import model_path

    shutil.copytree(model_path(), tmp_path / "model")
    assert plan_of(captions(folder, model=str(tmp_path / "model"))).todo  # the same, elsewhere
    with (tmp_path / "model" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(OutputConflict, match=r"--model was demo .*, is .*model"):
        plan_of(captions(folder, model=str(tmp_path / "model")))


@pytest.mark.usefixtures("local_ray")
def test_a_run_answers_what_was_open_and_leaves_every_older_table_as_it_was(folder: Path) -> None:
    before = hashes(folder / "captions")
    summary = run(captions(folder))
    after = hashes(folder / "captions")
    assert summary.run["units_answered"] == 1
    assert {name: after[name] for name in before} == before
    rows = ds.dataset(folder / "captions").to_table(columns=["id", "status"])
    assert rows.num_rows == len(set(rows["id"].to_pylist())) == 20
    said = json.loads((folder / "captions" / "_manifest" / "_job.json").read_text())
    assert said["settings_version"] == VERSION
    assert plan_of(captions(folder)).todo == []  # by the newer rules, which it says now
