"""Tables that say where their images lie: which column does, and what its paths and URIs mean."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_batch.driver.plan import make_plan
from llava_batch.driver.settle import settle
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.read.image_column import find_image_column
from llava_batch.read.uris import Escapes, absolute
from tests.shards import picture, put_parquet, read, reading

HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NEVER_BYTES = pa.struct([("bytes", pa.null()), ("path", pa.string())])
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


def chosen(wanted: str | None = None, **types: pa.DataType) -> str:
    return find_image_column(pa.schema(list(types.items())), wanted, "a.parquet")


def uris(path: Path, **settings: Any) -> list[list[str] | None]:
    return [row["uris"] for row in read(path, reading(**settings))]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_text_of_any_arrow_type_says_where_the_image_lies(tmp_path, kind):
    put_parquet(tmp_path / "a.parquet", {"image_path": pa.array(["/x/a.png", "b.png"]).cast(kind)})
    assert uris(tmp_path / "a.parquet") == [["/x/a.png"], [f"{tmp_path}/b.png"]]


def test_text_columns_are_taken_by_name_in_the_order_of_the_documentation():
    names = ["image", "image_path", "image_uri", "image_url", "path", "uri", "url", "file_name"]
    for first in range(len(names)):
        there = dict.fromkeys(reversed(["caption", *names[first:]]), pa.string())
        assert chosen(**there) == names[first]
    with pytest.raises(UsageError, match="no column holds images"):
        chosen(caption=pa.string(), score=pa.float64())


def test_a_column_of_bytes_wins_over_text_unless_the_text_is_named():
    # img2dataset's tables hold the image and the URL that it came from.
    types = {"url": pa.string(), "image_path": pa.string(), "jpg": pa.binary()}
    assert chosen(**types) == "jpg"
    assert chosen("url", **types) == "url"
    with pytest.raises(UsageError, match="several columns could hold the image"):
        chosen(url=pa.string(), a=pa.binary(), b=pa.binary())
    with pytest.raises(UsageError, match="neither bytes nor text"):
        chosen("score", score=pa.float64())


def test_img2datasets_table_is_read_as_before(tmp_path):
    columns = {"url": ["https://x/1.png", "https://x/2.png"], "jpg": [picture(), None]}
    put_parquet(tmp_path / "a.parquet", columns)
    rows = read(tmp_path / "a.parquet")
    assert [(r["images"], r["uris"], r["error_code"]) for r in rows] == [
        ([picture()], None, None),
        (None, None, "image_missing"),
    ]


@pytest.mark.parametrize("kind", [HUGGING_FACE, NEVER_BYTES])
def test_hugging_faces_struct_with_null_bytes_is_its_path(tmp_path, kind):
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}, None]
    put_parquet(tmp_path / "a.parquet", {"image": pa.array(cells, kind)})
    rows = read(tmp_path / "a.parquet")
    assert [r["uris"] for r in rows] == [[f"{tmp_path}/a.png"], None, None]
    assert [r["error_code"] for r in rows] == [None, "image_missing", "image_missing"]


def test_a_list_may_mix_what_is_there_with_what_is_to_be_fetched(tmp_path):
    cell = [{"bytes": picture(), "path": "a.png"}, {"bytes": None, "path": "s3://b/c.png"}]
    put_parquet(tmp_path / "a.parquet", {"images": pa.array([cell, []], pa.list_(HUGGING_FACE))})
    mixed, empty = read(tmp_path / "a.parquet")
    assert mixed["images"] == [picture(), b""] and mixed["uris"] == ["", "s3://b/c.png"]
    assert empty["error_code"] == "image_missing"
    put_parquet(tmp_path / "b.parquet", {"image": [["a.png", "b.png"], ["c.png", ""], ["d.png"]]})
    two, half, one = read(tmp_path / "b.parquet")
    assert two["uris"] == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"] and two["images"] is None
    assert half["error_code"] == "image_missing" and len(one["uris"]) == 1


def test_empty_text_is_a_row_without_an_image(tmp_path):
    put_parquet(tmp_path / "a.parquet", {"image": ["", None, "a.png"]})
    codes = [row["error_code"] for row in read(tmp_path / "a.parquet")]
    assert codes == ["image_missing", "image_missing", None]


def test_relative_paths_start_at_the_tables_folder_or_at_the_image_root(tmp_path):
    put_parquet(tmp_path / "t" / "a.parquet", {"image": ["x/a.png", "./b.png", "s3://b/c", "/d"]})
    given = ["s3://b/c"], ["/d"]
    at = tmp_path / "t"
    assert uris(at / "a.parquet") == [[f"{at}/x/a.png"], [f"{at}/b.png"], *given]
    assert uris(at / "a.parquet", image_root=f"{tmp_path}/")[:2] == [
        [f"{tmp_path}/x/a.png"], [f"{tmp_path}/b.png"],
    ]  # fmt: skip
    secret = "s3://key:secret@b/r?endpoint_override=127.0.0.1:1&scheme=http&region=x"
    assert uris(at / "a.parquet", image_root=secret)[0] == ["s3://b/r/x/a.png"]


def test_a_relative_path_that_leaves_its_folder_is_its_own_rows_error(tmp_path):
    put_parquet(
        tmp_path / "t" / "a.parquet", {"image": ["../a.png", "x/../../b.png", "x/../c.png"]}
    )
    rows = read(tmp_path / "t" / "a.parquet")
    assert [r["error_code"] for r in rows] == ["image_missing", "image_missing", None]
    assert "--image-root" in rows[0]["error_message"]


@given(st.text(max_size=40))
def test_no_relative_path_lies_outside_its_folder(text):
    try:
        found = absolute(text, "/root/of/it")
    except Escapes:
        return
    assert found == text or found.startswith("/root/of/it/")
    assert found == text or "/../" not in f"{found}/"


def plan(folder: Path, **settings: Any) -> None:
    make_plan(settle(Job(input=(str(folder / "in"),), output=str(folder / "out"), **settings)))


def test_a_table_of_web_addresses_is_refused_before_anything_starts_unless_that_is_allowed(
    tmp_path,
):
    put_parquet(tmp_path / "in" / "a.parquet", {"url": ["http://x/1?key=hidden", "HTTPS://x/2"]})
    with pytest.raises(UsageError, match="--allow-http") as error:
        plan(tmp_path)
    assert "hidden" not in str(error.value)
    plan(tmp_path, allow_http=True)
    with pytest.raises(UsageError, match="--allow-http"):
        put_parquet(tmp_path / "in" / "a.parquet", {"url": ["1.png"]})
        plan(tmp_path, image_root="https://x/images")


def test_a_web_address_among_other_paths_refuses_nothing(tmp_path):
    put_parquet(tmp_path / "in" / "a.parquet", {"url": ["http://x/1", "/2.png"]})
    plan(tmp_path)
