"""What a run says before and after itself, and when it is the demo."""

import re
from pathlib import Path
from typing import Any

import pytest

from llava_batch import run
from llava_batch.cli.jobs import app, exit_status
from llava_batch.cli.terminal import outlook_lines, result_lines
from llava_batch.driver.summary import Summary
from llava_batch.errors import RunFailed, UsageError
from llava_batch.job import Job
from tests.answer_folder import bad, good, write_folder


@pytest.mark.parametrize("command", ["caption", "vqa", "instruct"])
@pytest.mark.parametrize(
    ("given", "asked_for"),
    [
        (["--input", "photos"], "--output: not given beside --input photos; name a folder"),
        (["--output", "out"], "--input: not given beside --output out; name shards"),
    ],
)
def test_a_place_that_was_forgotten_is_asked_for_and_nothing_is_drawn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    given: list[str],
    asked_for: str,
) -> None:
    # Once shapes were drawn beside OUT and captioned, and photographs went into the demo's folder.
    monkeypatch.chdir(tmp_path)
    question = ["--question", "Is it red?"] if command == "vqa" else []
    assert exit_status(app, [command, *given, *question], "llava-batch") == 2
    assert capsys.readouterr().err.startswith(f"llava-batch: {asked_for}")
    assert list(tmp_path.iterdir()) == []


def test_with_neither_place_it_is_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_batch.cli.terminal import placed

    def write_shards(folder: Path, *, count: int, seed: int) -> list[Path]:
        folder.mkdir(parents=True)
        (folder / "shapes-00000.tar").write_bytes(b"")
        return [folder / "shapes-00000.tar"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llava_batch.demo.shards.write_shards", write_shards)
    shards = (str(tmp_path / "demo-out" / "shards" / "shapes-00000.tar"),)
    for name in ("answers", "instruct"):  # the second time they are there
        job = placed(Job(seed=3), demo=name)
        assert job == Job(seed=3, input=shards, output=f"demo-out/{name}")


def summary(**changes: Any) -> Summary:
    """A run's, of 4 images in 2 units."""
    run = {"units_answered": 2, "units_done_before": 0, "units_changed": 0, "images": 4,
           "rows_with_several_images": 0, "images_without_question": 0}  # fmt: skip
    totals = {"units": 2, "units_limited": 0, "images": 4, "rows": 4, "ok": 4, "errors": {}}
    given: dict[str, Any] = {
        "status": "complete", "output": "out", "started_at": "", "finished_at": "", "wall_s": 2.0,
        "model": "demo", "fingerprint": "", "settings": {}, "run": run | changes.pop("run", {}),
        "totals": totals | changes.pop("totals", {}), "outlook": {"notes": []},
    }  # fmt: skip
    return Summary(**(given | changes))


def test_one_is_not_said_as_many() -> None:
    counts = ("units_done_before", "units_changed", "rows_with_several_images",
              "images_without_question", "questions_without_image", "images")  # fmt: skip
    totals = {"units": 1, "images": 1, "rows": 1, "ok": 1}
    one = "\n".join(result_lines(summary(run=dict.fromkeys(counts, 1), totals=totals)))
    assert re.findall(r"\b1 \w+s\b|\b1 \w+ were\b", one) == []
    for part in ("1 unit was answered before", "1 unit had changed and was", "1 row had several",
                 "1 image had no question", "1 question of the file joined", "1 image in 2.0 s",
                 "holds 1 row in 1 unit,"):  # fmt: skip
        assert part in one
    many = "\n".join(result_lines(summary(run=dict.fromkeys(counts, 2))))
    for part in ("2 units were answered before", "2 units had changed and were", "2 rows had several",
                 "2 images had no question", "2 questions of the file joined", "2 images in 2.0 s",
                 "holds 4 rows in 2 units,"):  # fmt: skip
        assert part in many


@pytest.mark.parametrize(("more", "named"), [(0, "(a, b)"), (1, "(a, b, …)")])
def test_a_dry_run_names_what_is_ahead_and_hides_no_table(more: int, named: str) -> None:
    # "(a, b, …)" where there were just the two, "1 generating actor(s)", and not a word of the table.
    ahead = {"units_todo": {"tar": 2 + more}, "first_units": ["a", "b"], "card": None,
             "weights_bytes": 0, "loose_images": 0, "rows_to_retry": 0, "notes": ["a note"],
             "image_tokens": [576, 2928], "slot_tokens": None}  # fmt: skip
    machine = {"workers": 1, "gpus_per_worker": 0.0, "threads_per_worker": 2, "prepare_workers": 1}
    settings: dict[str, Any] = {
        "dtype": "float32", "quantization": None, "format": "parquet", "limit": None,
        "publish": ["delta:/lake/t"], "max_tiles": None,
    }  # fmt: skip
    lines = result_lines(
        summary(status="dry run", outlook=ahead, machine=machine, settings=settings)
    )
    said = "\n".join(lines)
    assert f"Units to answer: {2 + more} tar {named};" in said and "(s)" not in said
    assert "1 generating actor of 0 GPU and 2 threads," in said
    assert "Published when all is answered: delta:/lake/t." in said
    assert "An image takes 576 to 2,928 tokens by its size (--max-tiles bounds it)." in lines
    assert "a note" in lines
    settings["limit"], settings["max_tiles"], ahead["image_tokens"] = 1, 2, [576, 576]
    again = summary(status="dry run", outlook=ahead, machine=machine, settings=settings)
    assert "An image takes 576 tokens." in outlook_lines(again)
    assert "Of these the first 1 image alone (--limit)." in outlook_lines(
        summary(status="dry run", outlook=ahead, machine=machine, settings=settings)
    )


def test_several_images_are_no_warning_where_the_model_knows_them() -> None:
    said = {known: "\n".join(result_lines(summary(
        run={"rows_with_several_images": 2},
        outlook={"notes": [], "several_images_are_known": known},
    ))) for known in (False, True)}  # fmt: skip
    assert "the model was not trained on that, and answers may be poor" in said[False]
    assert "several images" not in said[True]


def test_after_errors_the_last_line_says_how_they_are_seen() -> None:
    errors = {"ok": 3, "errors": {"image_missing": 1}}
    lines = result_lines(summary(totals=errors, output="my out"))
    assert "1 of them in error (1 image_missing)." in lines[-3]
    assert lines[-2:] == [
        "Look at them: my out/_report.html",
        "The rows in error: llava-batch show 'my out' --errors",
    ]
    assert not any("--errors" in line for line in result_lines(summary()))


def test_a_run_that_failed_says_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = {"units": 1, "rows": 2, "ok": 1, "errors": {"image_missing": 1}}
    rows = [good("a", "A cat."), bad("b", "image_missing", "gone")]
    out = write_folder(tmp_path / "out", rows, run={"totals": totals})

    def fail(*given: object) -> None:
        raise RunFailed("1 of 2 rows are in error")

    monkeypatch.setattr("llava_batch.pipeline.run_settled", fail)
    job = ["caption", "--input", str(tmp_path), "--output", out]
    assert exit_status(app, job, "llava-batch") == 3
    assert capsys.readouterr().err.splitlines() == [
        f"{out} holds 2 rows in 1 unit, 1 of them in error (1 image_missing).",
        f"Look at them: {out}/_report.html",
        f"The rows in error: llava-batch show {out} --errors",
        "llava-batch: 1 of 2 rows are in error",
    ]
    assert exit_status(app, [*job, "--quiet"], "llava-batch") == 3
    assert capsys.readouterr().err.splitlines() == ["llava-batch: 1 of 2 rows are in error"]


@pytest.mark.parametrize("job", [Job(), Job(input=("photos",)), Job(output="out")])
def test_a_job_of_python_s_names_its_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not given"):
        run(job)
    assert list(tmp_path.iterdir()) == []
