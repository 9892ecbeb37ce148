"""What `llava-batch inspect` says of the lake's tables."""

import pytest

from llava_batch.cli.inspect_inputs import inspect, told
from tests.read.lake.tables import images

deltalake = pytest.importorskip("deltalake")


def test_a_tables_snapshot_rows_columns_and_partitions_are_told(tmp_path):
    deltalake.write_deltalake(
        tmp_path / "shop", images(1, 2, 3, dt=["a", "b", "b"]), partition_by=["dt"]
    )
    deltalake.DeltaTable(tmp_path / "shop").delete("name = 'k2'")
    (found,) = inspect([str(tmp_path)])
    assert (found.kind, found.rows, found.sampled) == ("delta", 2, 2)
    assert found.columns["dt"] == "string" and found.columns["image"] == "binary"
    lines = told(found)
    assert lines[0].startswith("delta: 2 units (shop/dt=a/") and lines[0].endswith("rows: 2")
    assert lines[1] == "  table shop: snapshot 1, partitioned by dt"
