"""Lance datasets: rows, columns and deleted rows as pylance itself reads them."""

from pathlib import Path

import pyarrow as pa
import pytest

from llava_batch.errors import UsageError
from llava_batch.read.find import find
from llava_batch.read.lake.table import AsOf
from tests.read.lake.tables import images
from tests.read.lake.whole import as_read, keys_by_unit, names

lance = pytest.importorskip("lance")


def made(folder: Path, *numbers: int, rows_in_fragment: int = 2):
    return lance.write_dataset(
        images(*numbers), str(folder / "photos.lance"), max_rows_per_file=rows_in_fragment
    )


def ours(folder: Path, **as_of):
    return find([str(folder)], as_of=AsOf(**as_of))


def test_rows_and_columns_are_those_that_pylance_reads_and_deleted_ones_are_not_read(tmp_path):
    dataset = made(tmp_path, 1, 2, 3, 4, 5)
    before = ours(tmp_path)
    assert as_read(before, "name", "caption") == dataset.to_table().to_pylist()
    dataset.delete("name = 'k1' or name = 'k4'")
    found = ours(tmp_path)
    assert as_read(found, "name", "caption") == lance.dataset(dataset.uri).to_table().to_pylist()
    assert keys_by_unit(before) == {
        "photos/00000": ["0", "1"],
        "photos/00001": ["0", "1"],
        "photos/00002": ["0"],
    }
    assert keys_by_unit(found) == {
        "photos/00000": ["1"],
        "photos/00001": ["0"],
        "photos/00002": ["0"],
    }
    assert [u.source for u in found.units] == [u.source for u in before.units]
    assert [t.snapshot for t in found.tables] == [2]
    assert names(ours(tmp_path, snapshot=1)) == names(before)  # of the version it was opened at


def test_a_column_that_is_added_changes_no_fragment_whose_columns_are_read(tmp_path):
    dataset = made(tmp_path, 1, 2, 3)
    as_of = AsOf(columns=("caption",))
    before = [u.source for u in find([str(tmp_path)], as_of=as_of).units]
    dataset.add_columns({"upper": "upper(name)"})
    found = find([str(tmp_path)], as_of=as_of)
    assert [u.source for u in found.units] == before
    assert [r["upper"] for r in as_read(found, "upper")] == ["K1", "K2", "K3"]
    reads_it = find([str(tmp_path)], as_of=AsOf(columns=("caption", "upper"))).units
    assert not {u.source for u in reads_it} & set(before)


def test_a_dataset_that_is_written_anew_has_other_fingerprints(tmp_path):
    made(tmp_path, 1, 2)
    before = ours(tmp_path).units
    lance.write_dataset(images(1, 2), str(tmp_path / "photos.lance"), mode="overwrite")
    after = ours(tmp_path).units
    assert [u.name for u in after] == [u.name for u in before]
    assert [u.source for u in after] != [u.source for u in before]


def test_blobs_are_read_as_their_bytes(tmp_path):
    plain = images(1, 2)
    blob = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    schema = pa.schema([plain.schema.field("name"), blob])
    lance.write_dataset(plain.select(["name", "image"]).cast(schema), str(tmp_path / "b.lance"))
    assert [r["image"] for r in as_read(ours(tmp_path), "name")] == plain["image"].to_pylist()


def test_structs_times_and_nulls_are_as_the_dataset_has_them(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array(
        [{"bytes": data, "path": "p"} for data in images(1, 2)["image"].to_pylist()], struct
    )
    at = pa.array([None, 1_700_000_000_000_000], pa.timestamp("us", "UTC"))
    lance.write_dataset(pa.table({"image": cells, "at": at}), str(tmp_path / "s.lance"))
    read = as_read(ours(tmp_path), "at")
    assert [r["at"] for r in read] == at.to_pylist()
    assert [r["image"] for r in read] == images(1, 2)["image"].to_pylist()


def test_what_cannot_be_read_is_refused_in_a_line(tmp_path):
    made(tmp_path, 1)
    with pytest.raises(
        UsageError, match=r"photos\.lance: the lance table cannot be read"
    ) as refused:
        ours(tmp_path, snapshot=9)
    assert "\n" not in str(refused.value)
