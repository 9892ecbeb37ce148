"""Jobs over what lakes hold, end to end: a text table of paths that grows, and partitions day by day."""

import datetime
import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from llava_batch.demo.scenes import draw
from llava_batch.demo.shards import shard_scenes
from llava_batch.job import Job
from llava_batch.pipeline import run
from tests.conftest import SEED

pytestmark = pytest.mark.usefixtures("local_ray")


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in zip(names, shard_scenes(count=len(names), seed=SEED), strict=True):
        draw(scene, short_side=64).save(folder / name)


def answers(out: Path) -> dict[str, dict]:
    return {row["id"]: row for row in ds.dataset(out).to_table().to_pylist()}


def test_a_csv_file_of_paths_is_captioned_and_only_its_new_rows_when_it_grows(
    tmp_path: Path,
) -> None:
    pictures(tmp_path / "images", "a.png", "b, c.png")
    table, out = tmp_path / "list.csv", tmp_path / "out"
    table.write_text('image_path,code\nimages/a.png,007\n"images/b, c.png",\nimages/gone.png,9\n')
    job = Job(input=(str(table),), output=str(out), keep=("code", "image_path"), quiet=True)
    run(job)
    first = answers(out)
    assert [(i, r["status"], r["error_code"], r["code"]) for i, r in sorted(first.items())] == [
        ("list-00000/0", "ok", None, "007"),
        ("list-00000/1", "ok", None, ""),
        ("list-00000/2", "error", "image_missing", "9"),
    ]
    assert first["list-00000/1"]["image_path"] == "images/b, c.png"
    with table.open("a") as file:
        file.write("images/a.png,again\n")
    run(job)
    told = json.loads((out / "_run.json").read_text())["run"]
    assert (told["units_answered"], told["images"]) == (1, 1)
    second = answers(out)
    assert second.items() >= first.items() and second.keys() - first.keys() == {"list-00001/3"}
    assert second["list-00001/3"]["answer"] == first["list-00000/0"]["answer"]


def test_days_by_partition_are_the_whole_with_partition_and_metadata_as_columns(tmp_path) -> None:
    lake = tmp_path / "lake"
    for day in ("2026-11-01", "2026-11-02"):
        pictures(lake / f"dt={day}", "x.png", "y.png")
        row = {"file_name": "x.png", "text": f"of {day}"}
        (lake / f"dt={day}" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    days = Job(
        input=(str(lake / "dt=2026-11-01"),), output=str(tmp_path / "days"), prompt="On {dt}?",
        keep=("dt:date32", "text"), quiet=True,
    )  # fmt: skip
    run(days)
    run(days.but(input=(str(lake),), partition=("dt=2026-11-02",)))
    run(days.but(input=(str(lake),), output=str(tmp_path / "whole")))
    found = answers(tmp_path / "days")
    assert found == answers(tmp_path / "whole")
    second = datetime.date(2026, 11, 2)
    assert [(i, r["dt"], r["text"], r["prompt"]) for i, r in sorted(found.items())][2:] == [
        ("dt=2026-11-02-00000/x.png", second, "of 2026-11-02", found["dt=2026-11-02-00000/x.png"]["prompt"]),
        ("dt=2026-11-02-00000/y.png", second, None, found["dt=2026-11-02-00000/y.png"]["prompt"]),
    ]  # fmt: skip
    assert all("On 2026-11-0" in row["prompt"] for row in found.values())
    told = json.loads((tmp_path / "days" / "_run.json").read_text())
    assert told["run"]["skipped"] == {"outside --partition": 2, "side files": 2}
