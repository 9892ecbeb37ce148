"""Jobs over the lake's tables, end to end: two nights over each kind, with the demo model."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from llava_batch.demo.scenes import draw
from llava_batch.demo.shards import shard_scenes
from llava_batch.job import Job
from llava_batch.pipeline import run
from tests.conftest import SEED
from tests.read.lake.tables import delete_positions, folder_of, iceberg_catalog

pytestmark = pytest.mark.usefixtures("local_ray")


def scenes(*numbers: int, day: str = "mon") -> pa.Table:
    """A table of demo scenes: key, image, a text, a partition."""
    rows = []
    drawn = shard_scenes(count=12, seed=SEED)
    for number in numbers:
        file = io.BytesIO()
        draw(drawn[number]).save(file, "PNG")
        rows.append(
            {"name": f"s{number}", "image": file.getvalue(), "said": f"no {number}", "day": day}
        )
    return pa.Table.from_pylist(rows)


def night(source: str, out: Path, **more: Any) -> dict[str, Any]:
    """One run; what `_run.json` counts of it."""
    job = Job(
        input=(source,), output=str(out), prompt="Picture {said}: what is there?", keep=("day",),
        max_new_tokens=8, quiet=True, slots=4, **more,
    )  # fmt: skip
    run(job)
    counts: dict[str, Any] = json.loads((out / "_run.json").read_text())["run"]
    return counts


def rows(out: Path) -> dict[str, dict[str, Any]]:
    found = ds.dataset(out).to_table().to_pylist()
    by_id = {row["id"]: row for row in found}
    assert len(by_id) == len(found), "an id stands twice"
    assert {row["status"] for row in found} == {"ok"}
    return by_id


def test_a_delta_table_that_is_deleted_from_and_compacted_costs_what_is_new(tmp_path):
    deltalake = pytest.importorskip("deltalake")
    uri, out = str(tmp_path / "shop"), tmp_path / "out"
    deltalake.write_deltalake(uri, scenes(0, 1, 2), partition_by=["day"])
    deltalake.write_deltalake(uri, scenes(3, day="tue"), mode="append")
    deltalake.write_deltalake(uri, scenes(4), mode="append")
    first = night(uri, out, key_column="name")
    assert (first["rows"], first["snapshots"]) == (5, {"shop": 2})
    before = rows(out)
    assert set(before) == {f"shop/s{n}" for n in range(5)}
    assert (
        before["shop/s3"]["day"] == "tue" and before["shop/s3"]["prompt"].count("Picture no 3") == 1
    )

    table = deltalake.DeltaTable(uri)
    table.delete("name = 's1'")
    table.optimize.compact()
    deltalake.write_deltalake(uri, scenes(5, day="wed"), mode="append")
    second = night(uri, out, key_column="name")
    assert (second["rows"], second["rows_copied"]) == (1, 3)  # of monday's; tuesday's file stood
    after = rows(out)
    assert set(after) == {*before, "shop/s5"}
    same = ("answer", "prompt", "image_sha256", "mean_logprob", "day", "key")
    assert all(after[i][n] == before[i][n] for i in before for n in same)


def test_an_iceberg_table_with_position_deletes_leaves_what_stands(tmp_path):
    pytest.importorskip("pyiceberg")
    out = tmp_path / "out"
    table = iceberg_catalog(tmp_path / "ice").create_table("ns.shop", schema=scenes(0).schema)
    table.append(scenes(0, 1, 2))
    (task,) = table.scan().plan_files()
    table = delete_positions(table, {task.file.file_path: [1]})
    first_id = table.current_snapshot().snapshot_id
    first = night(str(folder_of(table)), out)
    assert (first["rows"], first["snapshots"]) == (2, {"shop": first_id})
    before = rows(out)
    assert {i.rpartition("/")[2] for i in before} == {"0", "2"}

    table = delete_positions(table, {task.file.file_path: [0]})
    table.append(scenes(6, 7))
    second = night(str(folder_of(table)), out)
    assert second["rows"] == 2
    after = rows(out)
    assert {i: after[i] for i in before} == before and len(after) == 4
    again = night(str(folder_of(table)), tmp_path / "then", snapshot=first_id)
    assert again["rows"] == 2
    assert {i: r["answer"] for i, r in rows(tmp_path / "then").items()} == {
        i: r["answer"] for i, r in before.items()
    }


def test_a_lance_dataset_that_grows_and_gets_a_column_is_answered_where_it_is_new(tmp_path):
    lance = pytest.importorskip("lance")
    uri, out = str(tmp_path / "shop.lance"), tmp_path / "out"
    dataset = lance.write_dataset(scenes(0, 1, 2, 3), uri, max_rows_per_file=2)
    dataset.delete("name = 's2'")
    assert night(uri, out)["rows"] == 3
    before = rows(out)
    assert set(before) == {"shop/00000/0", "shop/00000/1", "shop/00001/1"}

    dataset = lance.dataset(uri)
    dataset.delete("name = 's0'")
    dataset.add_columns({"shout": "upper(name)"})
    lance.write_dataset(scenes(8).append_column("shout", pa.array(["S8"])), uri, mode="append")
    second = night(uri, out)
    assert (second["rows"], second["units_done_before"]) == (1, 2)
    after = rows(out)
    assert {i: after[i] for i in before} == before and len(after) == 4
