"""Runs that publish, end to end: the demo model, Delta and Iceberg, the command lines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_batch.cli.jobs import app, exit_status
from llava_batch.errors import OutputConflict, RunFailed, UsageError
from llava_batch.job import Job
from llava_batch.pipeline import run
from llava_batch.write.publish.change import PublishFailed
from llava_batch.write.publish.delta import DeltaLake
from tests.shards import picture, put, tar_bytes
from tests.write.publish.tables import answers, lake, rows, target, versions

__all__ = ["lake"]

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("local_ray")


def shard(folder: Path, name: str, count: int = 3) -> None:
    images = {f"{n}.png": picture(n) if n else b"no image" for n in range(count)}
    put(folder / f"{name}.tar", tar_bytes(images))


def job(tmp_path: Path, *tables: str, **settings: Any) -> Job:
    given: dict[str, Any] = {"max_new_tokens": 3, "quiet": True, "publish": tables} | settings
    return Job(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), **given)


def cli(*args: str) -> int:
    return exit_status(app, list(args), "llava-batch")


def of_folder(out: Path) -> dict[str, str]:
    """The answers in the folder as anybody reads it."""
    import pyarrow.dataset as ds

    found = ds.dataset(out).to_table(columns=["id", "answer", "error_code"]).to_pylist()
    return {row["id"]: row["answer"] or row["error_code"] for row in found}


def test_a_night_is_published_into_both_kinds_of_table_and_the_next_one_adds_to_it(
    tmp_path: Path, lake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta, iceberg = target("delta", lake), target("iceberg", lake)
    out = tmp_path / "out"
    shard(tmp_path / "in", "a")
    first = run(job(tmp_path, delta, iceberg))
    assert [done["rows_written"] for done in first.published] == [3, 3]
    assert json.loads((out / "_run.json").read_text())["published"] == first.published
    assert answers(delta) == answers(iceberg) == of_folder(out)
    assert rows(delta)[1]["turns"] == rows(iceberg)[1]["turns"] != []

    shard(tmp_path / "in", "b", 2)
    second = run(job(tmp_path, delta, iceberg, retry_errors=True))
    assert [(d["units_added"], d["units_replaced"]) for d in second.published] == [(1, 1), (1, 1)]
    assert answers(delta) == answers(iceberg) == of_folder(out)
    assert versions(delta) == versions(iceberg) == 2
    from deltalake import DeltaTable

    commit = DeltaTable(delta.partition(":")[2]).history(1)[0]
    assert commit["llava_batch.fingerprint"] == second.fingerprint
    assert json.loads(commit["llava_batch.inputs"]) == [str(tmp_path / "in")]

    third = run(job(tmp_path, delta, iceberg))
    assert [done["publication"] for done in third.published] == [None, None]

    (tmp_path / "in" / "a.tar").unlink()
    forget = ["forget", str(out), "--input", str(tmp_path / "in"), "--publish", delta]
    assert cli(*forget) == 0
    assert "3 answers" in (said := capsys.readouterr().err) and "Nothing was deleted" in said
    assert answers(delta).keys() == {"a/0", "a/1", "a/2", "b/0", "b/1"}
    assert cli(*forget, "--delete") == 0
    said = capsys.readouterr().err
    assert "VACUUM" in said and "iceberg:night.lake.answers was not given with --publish" in said
    assert answers(delta).keys() == of_folder(out).keys() == {"b/0", "b/1"}
    assert len(answers(iceberg)) == 5
    assert cli("publish", str(out), iceberg) == 0
    assert "1 unit removed" in capsys.readouterr().err
    assert answers(iceberg) == answers(delta)
    assert run(job(tmp_path, delta, iceberg)).run["units_answered"] == 0


def test_a_failed_publication_fails_the_run_after_it_and_the_next_run_publishes(
    tmp_path: Path, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = target("delta", lake)
    shard(tmp_path / "in", "a")

    def fail(*args: Any) -> str:
        raise PublishFailed("the storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(DeltaLake, "commit", fail)
        with pytest.raises(RunFailed, match=r"--publish delta:.*failed \(the storage is away\)"):
            run(job(tmp_path, to))
        with pytest.raises(RunFailed, match="run again to publish them"):
            run(job(tmp_path, to))
    assert json.loads((tmp_path / "out" / "_run.json").read_text())["run"]["units_answered"] == 1
    assert rows(to) == []
    assert run(job(tmp_path, to)).published[0]["rows_written"] == 3
    assert answers(to) == of_folder(tmp_path / "out")


def test_with_a_limit_nothing_is_published_and_a_stopped_run_publishes_nothing(
    tmp_path: Path, lake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = target("delta", lake)
    shard(tmp_path / "in", "a")
    places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    flags = [*places, "--publish", to, "--max-new-tokens", "3"]
    assert cli("caption", *flags, "--limit", "2") == 0
    assert "Nothing was published: --limit" in capsys.readouterr().err
    assert rows(to) == []

    def stop(*args: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeltaLake, "commit", stop)
        assert cli("caption", *flags) == 130
    assert json.loads((tmp_path / "out" / "_run.json").read_text())["status"] == "stopped"
    assert rows(to) == []
    assert cli("caption", *flags) == 0
    assert "3 rows written in one commit (1 unit added)" in capsys.readouterr().err
    assert answers(to) == of_folder(tmp_path / "out")


def test_overwriting_replaces_the_tables_rows_in_one_commit(tmp_path: Path, lake: Path) -> None:
    to = target("delta", lake)
    shard(tmp_path / "in", "a")
    run(job(tmp_path, to))
    run(job(tmp_path, to, prompt="What is there?", overwrite=True))
    assert {row["prompt"] for row in rows(to)} == {"USER: <image>\nWhat is there? ASSISTANT:", None}
    assert versions(to) == 2
    assert answers(to) == of_folder(tmp_path / "out")


def test_what_cannot_be_published_is_refused_before_anything_is_answered(
    tmp_path: Path, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(tmp_path / "in", "a")
    for to, said in (
        ("hudi:x", "give delta:URI"),
        (f"delta:{tmp_path}/out/t", "lies in --output"),
        (f"delta:{tmp_path}/in/t", "lies in --input"),
        (f"delta:{tmp_path}", "lies in --output"),
        ("iceberg:nowhere.lake.t", "--publish iceberg:nowhere.lake.t: cannot be opened"),
    ):
        with pytest.raises(UsageError, match=said):
            run(job(tmp_path, to))
    with pytest.raises(UsageError, match="given twice"):
        run(job(tmp_path, f"delta:{lake}/t", f"delta:{lake}/./t/"))
    other = tmp_path / "other"
    shard(other / "in", "z")
    run(job(other, target("delta", lake)))
    with pytest.raises(OutputConflict, match="did not publish"):
        run(job(tmp_path, target("delta", lake)))
    monkeypatch.setattr("llava_batch.write.publish.target.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'llava-batch\[lake\]'"):
        run(job(tmp_path, f"delta:{lake}/t"))
    assert not (tmp_path / "out").exists()


def test_neither_ray_nor_torch_is_loaded_to_publish_what_was_answered_before(
    tmp_path: Path, lake: Path
) -> None:
    to = target("delta", lake)
    shard(tmp_path / "in", "a")
    run(job(tmp_path))
    code = (
        "import sys; from llava_batch.cli.jobs import app, exit_status\n"
        "print(exit_status(app, sys.argv[1:], 'llava-batch'), 'torch' in sys.modules, 'ray' in sys.modules)"
    )
    args = ["caption", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    ran = subprocess.run(
        [sys.executable, "-c", code, *args, "--publish", to, "--max-new-tokens", "3"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.split() == ["0", "False", "False"], ran.stderr
    assert answers(to) == of_folder(tmp_path / "out")
