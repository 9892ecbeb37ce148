"""Damaged and odd Parquet files: what reads is a row, what does not is said, storage is not damage."""

import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.read import parquet as parquet_module
from llava_batch.read.columns import keep_schema
from llava_batch.read.kinds import KINDS, first_row
from llava_batch.read.parquet import read_parquet
from llava_batch.read.source import read_blocks
from llava_batch.read.storage_failed import StorageFailed
from tests.away import Clock
from tests.shards import outcome, picture, put, put_parquet, read, reading, rows_of, units_of

THIRTY = [picture(n) for n in range(30)]


def parquet(path: Path, **columns) -> Path:
    return put_parquet(path, {"image": THIRTY, **columns})


def spoil(path: Path, at: int, data: bytes = b"\xff" * 40) -> None:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)


def test_rows_go_by_their_key_column_or_else_by_their_number(tmp_path):
    keyed = read(parquet(tmp_path / "a.parquet", key=[f"k{n}" for n in range(30)]))
    assert [r["key"] for r in keyed] == [f"k{n}" for n in range(30)]
    assert [r["key"] for r in read(parquet(tmp_path / "b.parquet"))] == [*map(str, range(30))]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_one_damaged_row(tmp_path, share):
    path = parquet(tmp_path / "a.parquet")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert outcome(read(path)) == {"%damaged-1": "shard_damaged"}


def test_a_spoiled_page_costs_its_row_group_and_the_others_are_read(tmp_path):
    path = parquet(tmp_path / "a.parquet")
    spoil(path, path.read_bytes().index(THIRTY[14]) + 30, b"?")  # only the checksum can tell
    codes = [r["error_code"] for r in read(path)]
    assert codes == [None] * 10 + ["shard_damaged"] * 10 + [None] * 10


def test_a_text_that_is_no_utf8_costs_its_own_row(tmp_path):
    # One bad caption once cost the rest of its row group.
    captions = [b"fine"] * 30
    captions[4] = b"\xff\xfe"
    path = parquet(tmp_path / "a.parquet", caption=pa.array(captions).view(pa.string()))
    codes = [r["error_code"] for r in read(path, reading(None, "caption"))]
    assert codes == [None] * 4 + ["shard_damaged"] + [None] * 25


def test_a_date_out_of_all_bounds_costs_its_own_row(tmp_path):
    # It raised OverflowError, and the job died.
    taken = pa.array([0] * 7 + [2**62] + [0] * 22, pa.int64()).cast(pa.timestamp("us"))
    path = parquet(tmp_path / "a.parquet", taken=taken)
    codes = [r["error_code"] for r in read(path, reading(None, "taken"))]
    assert codes == [None] * 7 + ["shard_damaged"] + [None] * 22


def test_keys_that_come_twice_null_or_as_bytes_are_told_apart(tmp_path):
    keys = pa.array([b"a", b"a", None, b"3"] + [b"%d" % n for n in range(100, 126)])
    names = [*outcome(read(parquet(tmp_path / "a.parquet", key=keys)))]
    assert names[:4] == ["a", "a%dup2", "2", "3"]


def test_a_key_with_a_stray_byte_and_one_that_spells_it_out_are_told_apart(tmp_path):
    # Both were the id `a\\xff`, and the whole run ended with a traceback.
    keys = pa.array([b"a\xff", rb"a\xff", b"a\xff"] + [b"%d" % n for n in range(27)])
    names = [*outcome(read(parquet(tmp_path / "a.parquet", key=keys)))]
    assert names[:3] == [r"a\xff", r"a\xff%dup2", r"a\xff%dup3"]


def test_null_and_empty_images_are_missing_with_what_the_download_said(tmp_path):
    path = put_parquet(
        tmp_path / "a.parquet",
        {"jpg": [picture(), None, b""], "error_message": [None, "404", None]},
    )
    rows = read(path)
    assert [r["error_code"] for r in rows] == [None, "image_missing", "image_missing"]
    assert "404" in rows[1]["error_message"]


def test_hugging_faces_struct_is_read(tmp_path):
    cells = [{"bytes": picture(n), "path": None} for n in range(3)]
    assert len(read(put_parquet(tmp_path / "a.parquet", {"image": cells}))) == 3


def test_a_file_of_another_schema_is_rows_in_error_and_its_neighbour_is_read(tmp_path):
    parquet(tmp_path / "a.parquet")
    put_parquet(tmp_path / "b.parquet", {"text": ["x", "y"]})
    good, odd = (rows_of(u) for u in units_of(tmp_path))
    assert {r["error_code"] for r in good} == {None}
    assert [r["error_code"] for r in odd] == ["image_missing"] * 2
    assert "no column holds images" in odd[0]["error_message"]


def test_a_kept_column_that_is_null_in_the_first_file_is_text(tmp_path):
    # It was typed `null`, and every later file with text in it was refused.
    first = parquet(tmp_path / "a.parquet", caption=pa.nulls(30))
    second = parquet(tmp_path / "b.parquet", caption=["x"] * 30)
    (unit,) = units_of(first)
    keep = keep_schema(["caption"], unit, first_row(unit, reading()))
    assert {r["keep.caption"] for r in read(second, reading(keep))} == {"x"}


def test_a_kept_column_of_another_type_leaves_the_unit_open_and_names_it(tmp_path):
    path = parquet(tmp_path / "a.parquet", score=["high"] * 30)
    (unit,) = units_of(path)
    *_, end = read_blocks(unit, reading(pa.schema([("score", pa.float32())])))
    (row,) = end.to_pylist()
    assert row["end"] and "--keep score: unit a" in row["error_message"]


def test_a_damaged_first_file_does_not_keep_the_next_from_naming_the_columns(tmp_path):
    (unit,) = units_of(put(tmp_path / "a.parquet", b"PAR1 nothing PAR1"))
    assert first_row(unit, reading()) == {}


CAPTIONS = [b"fine"] * 30


def captioned(path: Path, captions: list[bytes], **columns) -> Path:
    return parquet(path, caption=pa.array(captions).view(pa.string()), **columns)


@pytest.mark.parametrize(
    "key", [{}, {"key": [f"k{n % 5}" for n in range(30)]}], ids=["none", "key"]
)
def test_a_damaged_row_that_reads_on_a_retry_is_found_by_the_name_it_was_answered_under(
    tmp_path, key
):
    # It was looked for as `3%row`, came as `k3`, and stayed in error for ever.
    spoilt = [*CAPTIONS[:3], b"\xff\xfe", *CAPTIONS[4:]]
    how = reading(None, "caption")
    first = outcome(read(captioned(tmp_path / "a.parquet", spoilt, **key), how))
    assert first["3%row"] == "shard_damaged"
    (unit,) = units_of(captioned(tmp_path / "b.parquet", CAPTIONS, **key))
    again = rows_of(replace(unit, retry=frozenset(first)), how)
    assert outcome(again) == dict.fromkeys(first, "ok")
    assert [r["images"] for r in again] == [[image] for image in THIRTY]
    (row,) = rows_of(replace(unit, retry=frozenset({"3%row"})), how)
    assert row["images"] == [THIRTY[3]]


class ShortOfMemory:
    """Stands in for reading row groups: fails at the second `times`, as memory does."""

    def __init__(self, monkeypatch, what: str, times: int) -> None:
        self.what, self.times = what, times
        self.whole = pq.ParquetFile.iter_batches
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: self(*a, **k))
        monkeypatch.setattr("llava_batch.read.source.time.sleep", lambda s: None)

    def __call__(self, file, rows, groups, columns, **how):
        if groups == [1] and self.times:
            self.times -= 1
            raise pa.ArrowMemoryError(self.what)
        return self.whole(file, rows, groups, columns, **how)


def test_memory_that_is_short_for_a_while_costs_no_row(tmp_path, monkeypatch):
    # The row group was committed as damaged.
    path = parquet(tmp_path / "a.parquet")
    ShortOfMemory(monkeypatch, "malloc of size 1048576 failed", 2)
    assert outcome(read(path)) == {str(n): "ok" for n in range(30)}


def test_memory_that_stays_short_leaves_the_unit_open_and_says_so(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet")
    ShortOfMemory(monkeypatch, "realloc of size 1048576 failed", 99)
    *_, end = read_blocks(units_of(path)[0], reading())
    (row,) = end.to_pylist()
    assert row["end"] and row["error_code"] == "shard_damaged"
    assert "ArrowMemoryError: realloc of size 1048576 failed" in row["error_message"]


def test_a_size_that_no_memory_could_hold_is_damage(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet")
    ShortOfMemory(monkeypatch, f"malloc of size {2**62} failed", 99)
    codes = [r["error_code"] for r in read(path)]
    assert codes == [None] * 10 + ["shard_damaged"] * 10 + [None] * 10


def test_a_column_without_a_name_is_a_column_like_any_other(tmp_path):
    # As the image it was a NameError, and the job died.
    path = put_parquet(tmp_path / "a.parquet", {"": THIRTY})
    assert outcome(read(path)) == {str(n): "ok" for n in range(30)}
    path = parquet(tmp_path / "b.parquet", **{"": [f"k{n}" for n in range(30)]})
    named = replace(reading(), key_column="")
    assert [r["key"] for r in read(path, named)] == [f"k{n}" for n in range(30)]


def test_two_columns_of_the_image_columns_name_are_no_exception(tmp_path):
    # Asked for by name it was a KeyError, and the job died.
    image = pa.array(THIRTY)
    pq.write_table(pa.table([image, image], names=["image"] * 2), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", reading(image_column="image"))
    assert {r["error_code"] for r in rows} == {None}


def test_lists_of_lists_hold_no_images(tmp_path):
    # They were taken for images, and their rows ended the job.
    path = put_parquet(tmp_path / "a.parquet", {"image": [[[picture()]], [[picture(1)]]]})
    assert [r["error_code"] for r in read(path)] == ["image_missing"] * 2


class Failing(io.RawIOBase):
    """A file whose storage fails once `left` reads are done."""

    def __init__(self, data: bytes, left: int) -> None:
        self._file, self.left = io.BytesIO(data), left

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ConnectionResetError("gone")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Counting(io.BytesIO):
    """Keeps how many bytes were read, and the most at once."""

    num_bytes = most = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.num_bytes, self.most = self.num_bytes + len(data), max(self.most, len(data))
        return data


@pytest.mark.parametrize("kind", ["bytes", "struct", "list"])
def test_the_first_row_comes_before_the_rest_of_its_row_group_is_read(tmp_path, kind):
    # A row group of 400 MB was in memory whole, before its first row came.
    images = [bytes([n]) * 2**20 for n in range(48)]
    column = {
        "bytes": images,
        "struct": [{"bytes": image, "path": "x"} for image in images],
        "list": [[image[:-1], image[-1:]] for image in images],
    }[kind]
    table = pa.table({"image": column, "caption": ["c"] * 48})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_dictionary=False, compression="none", write_batch_size=1)
    file = Counting(path.read_bytes())
    rows = read_parquet(
        pa.PythonFile(file, mode="r"),
        "a.parquet",
        row_groups=None,
        image_column=None,
        key_column=None,
        columns=("caption",),
        root="/",
        max_image_bytes=2**24,
    )
    first = next(rows)
    assert file.num_bytes < 16 * 2**20 and file.most <= 4 * 2**20
    assert [b"".join(row.images) for row in [first, *rows]] == images
    assert file.num_bytes > 48 * 2**20


@pytest.mark.parametrize("reads", range(4))
def test_a_storage_that_fails_is_never_taken_for_damage(tmp_path, reads):
    # A lost connection was an OSError like a corrupt page: a whole file became one row in error.
    data = parquet(tmp_path / "a.parquet").read_bytes()
    rows = read_parquet(
        pa.PythonFile(Failing(data, reads), mode="r"),
        "a.parquet",
        row_groups=None,
        image_column=None,
        key_column=None,
        columns=(),
        root="/",
        max_image_bytes=10**6,
    )
    good = []
    with pytest.raises(StorageFailed):
        for row in rows:
            good.append(row)
    assert all(not row.error for row in good)


def test_a_unit_whose_file_is_gone_is_left_open_and_says_so(tmp_path):
    path = parquet(tmp_path / "a.parquet")
    (unit,) = units_of(path)
    path.unlink()
    (end,) = [r for block in read_blocks(unit, reading()) for r in block.to_pylist()]
    assert end["end"] and end["error_code"] == "shard_damaged"
    assert "FileNotFoundError" in end["error_message"]


def test_a_read_that_breaks_off_is_carried_on_where_it_broke(tmp_path, monkeypatch):
    (unit,) = units_of(parquet(tmp_path / "a.parquet"))
    from llava_batch.read import source
    from llava_batch.read.kinds import read_rows as whole

    calls = []

    def breaking(unit, how):
        calls.append(1)
        for number, row in enumerate(whole(unit, how)):
            if number == 13 and len(calls) < 3:
                raise ConnectionResetError("gone")
            yield row

    monkeypatch.setattr(source, "read_rows", breaking)
    patient = replace(reading(), patience=Clock().patience())
    assert [r["key"] for r in rows_of(unit, patient)] == [*map(str, range(30))]
    assert len(calls) == 3


def test_a_large_file_is_split_by_row_groups_and_keeps_its_row_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "SPLIT_BYTES", 1000)
    parts = units_of(parquet(tmp_path / "a.parquet"))
    assert [u.name for u in parts] == [f"a-{n:05d}" for n in range(len(parts))]
    assert len(parts) > 1
    keys = [r["key"] for part in parts for r in rows_of(part)]
    assert keys == [*map(str, range(30))]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.integers(0, 200), group=st.integers(1, 90), most=st.integers(1, 50))
def test_units_of_few_rows_hold_all_of_them_once_and_in_order(
    tmp_path, monkeypatch, rows, group, most
) -> None:
    # A file of a million rows and few bytes was one unit: all its answers were a kill's to lose.
    monkeypatch.setattr(parquet_module, "SPLIT_ROWS", most)
    monkeypatch.setattr(parquet_module, "_LEAST_BYTES", 0)
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": [b"%d" % n for n in range(rows)]}), path, row_group_size=group
    )
    parts = units_of(path)
    read = [[(r["key"], r["images"][0]) for r in rows_of(part)] for part in parts]
    assert [r for part in read for r in part] == [(str(n), b"%d" % n) for n in range(rows)]
    assert all(len(part) < most + min(group, most) for part in read)
    assert [KINDS["parquet"].count(part) for part in parts] == [len(part) for part in read]


def test_a_damaged_group_costs_each_of_its_units_its_own_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_module, "SPLIT_ROWS", 4)
    monkeypatch.setattr(parquet_module, "_LEAST_BYTES", 0)
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": [bytes([n]) * 500 for n in range(30)]}), path, row_group_size=10
    )
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    spoil(path, start, b"\xff" * 40)
    found = [(r["key"], r["error_code"]) for part in units_of(path) for r in rows_of(part)]
    bad = [None if not 10 <= n < 20 else "shard_damaged" for n in range(30)]
    assert found == [(str(n), code) for n, code in enumerate(bad)]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10**6), data=st.binary(min_size=1, max_size=60))
def test_any_bytes_overwritten_give_rows_or_damage_and_never_raise(tmp_path, at, data):
    path = parquet(tmp_path / "a.parquet", key=[f"k{n}" for n in range(30)])
    spoil(path, at % path.stat().st_size, data)
    assert read(path)


def test_a_name_that_readers_would_skip_is_escaped(tmp_path):
    # A table `_a.parquet` is skipped by every reader, a record `_a.json` was never read again.
    path = parquet(tmp_path / "in" / "_old" / "_a.parquet")
    assert units_of(path)[0].name == "%5Fa"
    assert units_of(tmp_path / "in") == []


def test_a_file_name_that_is_not_utf8_is_refused_by_name(tmp_path):
    parquet(tmp_path / "a.parquet")
    (tmp_path / b"caf\xe9.jpg".decode("utf-8", "surrogateescape")).write_bytes(picture())
    with pytest.raises(UsageError, match=r"caf\\xe9.jpg' in it is not UTF-8"):
        units_of(tmp_path)
