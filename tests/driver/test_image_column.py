"""An input without images where they are looked for is refused before anything is started."""

from pathlib import Path
from typing import Any

import pytest

from llava_batch.cli.jobs import app, exit_status
from llava_batch.driver.plan import Plan, make_plan
from llava_batch.driver.settle import settle
from llava_batch.errors import UsageError
from llava_batch.job import Job
from tests.shards import picture, put, put_parquet, tar_bytes


def plan(folder: Path, **settings: Any) -> Plan:
    out = str(folder.parent / "out")
    return make_plan(settle(Job(input=(str(folder),), output=out, **settings)))


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(UsageError) as error:
        plan(folder, **settings)
    return str(error.value)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Two sound files behind one that is damaged."""
    put(tmp_path / "in" / "a.parquet", b"PAR1 nothing PAR1")
    for name in "bc":
        columns = {"picture": [picture()], "text": ["x"], "thumb": [picture(1)], "n": [1]}
        put_parquet(tmp_path / "in" / f"{name}.parquet", columns)
    return tmp_path / "in"


def test_a_table_without_an_image_column_is_refused_and_its_columns_are_listed(tmp_path):
    # Every row of the lake became `image_missing`, and was committed.
    put_parquet(tmp_path / "in" / "a.parquet", {"text": ["x"], "n": [1]})
    message = refused(tmp_path / "in")
    assert "a.parquet: no column holds images" in message
    assert "there are text (string), n (int64)" in message


def test_a_mistyped_column_is_refused_and_the_columns_are_listed(tables):
    message = refused(tables, image_column="pictures")
    assert message.startswith("--image-column pictures:") and "picture (binary)" in message
    assert "b.parquet has neither bytes nor text in it" in refused(tables, image_column="n")
    assert refused(tables, image_column="thumb", key_column="id").startswith("--key-column id:")


def test_several_columns_that_could_be_the_image_are_refused_until_one_is_named(tables):
    assert "several columns could hold the image" in refused(tables)
    assert len(plan(tables, image_column="picture").todo) == 3


def test_a_damaged_file_and_one_without_rows_refuse_nothing(tmp_path):
    put(tmp_path / "in" / "a.parquet", b"PAR1 nothing PAR1")
    put(tmp_path / "in" / "b.tar", b"\1" * 2000)
    put_parquet(tmp_path / "in" / "c.parquet", {"text": []})
    put_parquet(tmp_path / "in" / "d.parquet", {"image": [picture()]})
    assert len(plan(tmp_path / "in").todo) == 4
    assert len(plan(tmp_path / "in", image_column="image").todo) == 4


def test_tars_without_a_member_of_the_extension_are_refused_and_the_extensions_are_listed(tmp_path):
    members = [("a.json", b"{}"), ("a.jpg", picture()), ("a.mask.png", picture(1))]
    put(tmp_path / "in" / "a.tar", tar_bytes(members))
    message = refused(tmp_path / "in", image_column="jpeg")
    assert message.startswith("--image-column jpeg:")
    assert message.endswith("a.tar has no jpeg member; there are jpg, png")
    assert len(plan(tmp_path / "in", image_column="jpg").todo) == 1


def test_the_command_says_it_in_a_line_and_exits_with_2(tables, tmp_path, capsys):
    arguments = ["--input", str(tables), "--output", str(tmp_path / "out"), "--image-column", "img"]
    assert exit_status(app, ["caption", *arguments], "llava-batch") == 2
    assert "--image-column img" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
