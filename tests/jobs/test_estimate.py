"""`llava-batch estimate`: the job's own flags, its own stages, figures that are so, and nothing written."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from llava_batch.cli.jobs import ESTIMATES, app, exit_status
from llava_batch.demo.scenes import draw
from llava_batch.demo.shards import shard_scenes, write_shards
from llava_batch.driver import pilot
from llava_batch.job import flag_name, job_fields
from tests.shards import put, put_parquet

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(autouse=True)
def _not_watched_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilot, "STEADY_S", 0.2)
    monkeypatch.setattr(pilot, "SETTLED_S", 0.1)


def said(capsys: Any, *arguments: Any, job: str = "caption") -> dict[str, Any]:
    """The estimate's figures."""
    arguments = ("estimate", job, *map(str, arguments), "--json", "--quiet")
    assert exit_status(app, [*arguments], "llava-batch") == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def ran(*arguments: Any) -> None:
    assert exit_status(app, ["caption", *map(str, arguments), "--quiet"], "llava-batch") == 0


def holds(figure: dict[str, float | None], truth: float) -> bool:
    low, high = figure["low"], figure["high"]
    return low is not None and low <= truth and (high is None or truth <= high)


def images_in(folder: Path, count: int, seed: int = 7) -> Path:
    folder.mkdir(parents=True)
    for number, scene in enumerate(shard_scenes(count=count, seed=seed)):
        draw(scene, short_side=112).save(folder / f"{number:04}.png")
    return folder


def test_a_pilot_larger_than_the_input_tells_what_the_job_then_does(
    capsys: Any, tmp_path: Path, demo_shards: list[Path]
) -> None:
    out = tmp_path / "out"
    told = said(capsys, "--input", *demo_shards, "--output", out, "--pilot", 500)
    assert not out.exists(), "nothing of a pilot lies anywhere"
    ran("--input", *demo_shards, "--output", out)
    run = json.loads((out / "_run.json").read_text())["run"]
    for name, of in (("images", "images"), ("rows", "rows"), ("prompt_tokens", "prompt_tokens"),
                     ("answer_tokens", "answer_tokens")):  # fmt: skip
        assert told[name] == {n: run[of] for n in ("value", "low", "high")}, name
    assert told["images_exact"] and {k["kind"] for k in told["kinds"]} == {"tar", "parquet"}
    again = said(capsys, "--input", *demo_shards, "--output", out)
    assert again["images"]["value"] == 0 == again["seconds"]["high"]
    assert again["images_answered"] == run["images"]


def test_what_is_answered_is_in_no_figure_and_what_is_new_is(capsys: Any, tmp_path: Path) -> None:
    place, out = tmp_path / "in", tmp_path / "out"
    _, second = write_shards(place, count=24, seed=9)
    second = second.rename(tmp_path / second.name)
    ran("--input", place, "--output", out)
    before = sorted(p.relative_to(out) for p in out.rglob("*"))
    shutil.move(second, place)
    told = said(capsys, "--input", place, "--output", out, "--pilot", 8)
    assert told["images_answered"] == 24
    assert told["images"] == {"value": 24, "low": 24, "high": 24}
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == before


def test_one_image_and_images_of_which_none_can_be_read_are_estimated_too(
    capsys: Any, tmp_path: Path
) -> None:
    one = images_in(tmp_path / "one", 1)
    told = said(capsys, "--input", one)
    assert told["images"]["value"] == told["rows"]["value"] == told["pilot"]["images"] == 1
    assert 0 < told["seconds"]["low"] < told["seconds"]["high"]
    for number in range(40):
        put(tmp_path / "bad" / f"{number}.jpg", b"<html>404</html>" * number)
    told = said(capsys, "--input", tmp_path / "bad")
    assert told["rows_in_error"] == {"value": 40, "low": 40, "high": 40}
    assert told["answer_tokens"]["value"] == 0


@pytest.mark.slow
def test_of_a_table_of_paths_the_share_that_cannot_be_fetched_is_told(
    capsys: Any, tmp_path: Path
) -> None:
    images_in(tmp_path / "images", 16)
    names = [f"images/{n % 16:04}.png" if n % 5 else f"images/gone-{n}.png" for n in range(400)]
    put_parquet(tmp_path / "table.parquet", {"path": names}, rows_in_group=100)
    told = said(capsys, "--input", tmp_path / "table.parquet", "--pilot", 64)
    assert told["images"]["value"] == 400
    assert holds(told["rows_in_error"], 80)
    assert told["rows_in_error"]["high"] < 160


@pytest.mark.slow
def test_questions_are_rows_and_a_recipe_has_its_turns(
    capsys: Any, tmp_path: Path, demo_shards: list[Path]
) -> None:
    asked = ("--input", demo_shards[0], "--pilot", 100)
    told = said(capsys, *asked, "--question", "How many?", "--question", "What?", job="vqa")
    assert told["rows"]["value"] == 2 * told["images"]["value"]
    told = said(capsys, *asked, "--recipe", "conversation", job="instruct")
    assert told["answer_tokens"]["value"] > told["images"]["value"]
    assert exit_status(app, ["estimate", "vqa", "--input", str(demo_shards[0])], "llava-batch") == 2
    assert "no question was given" in capsys.readouterr().err


def test_a_table_with_a_limit_and_a_price_and_flags_that_cannot_be(
    capsys: Any, demo_shards: list[Path]
) -> None:
    job = ["estimate", "caption", "--input", str(demo_shards[0]), "--limit", "5"]
    assert exit_status(app, [*job, "--price-per-hour", "4"], "llava-batch") == 0
    shown = capsys.readouterr()
    for line in ("images", "rows", "answer tokens", "worker-hours", "money", "start-up"):
        assert line in shown.out
    assert re.search(r"images +5 +5 +5", shown.out)
    assert "images (exact: their members' headers)" in shown.out
    assert "a pilot of 5 of them begins" in shown.err
    for flag, value in (("--pilot", "0"), ("--price-per-hour", "-1"), ("--price-per-hour", "inf")):
        job = ["estimate", "caption", "--input", str(demo_shards[1]), flag, value]
        assert exit_status(app, job, "llava-batch") == 2
        assert flag in capsys.readouterr().err


def test_it_has_every_flag_of_its_job(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for name in ESTIMATES:
        assert exit_status(app, ["estimate", name, "--help"], "llava-batch") == 0
        shown = capsys.readouterr().out
        assert [f.name for f in job_fields() if flag_name(f.name) not in shown] == []
        assert all(
            flag in shown for flag in ("--pilot", "--pilot-seed", "--price-per-hour", "--json")
        )
