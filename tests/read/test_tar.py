"""Damaged and odd tars: every good sample is a row, and what is damaged is said."""

import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.read.columns import keep_schema
from llava_batch.read.tar import read_tar
from tests.shards import outcome, picture, put, read, reading, tar_bytes, units_of

THREE = {f"{n:03}.png": picture(n) for n in range(3)}
BLOCK = 512


def names_and_codes(data: bytes, **limits) -> list[tuple[str, str]]:
    rows = read_tar(io.BytesIO(data), max_image_bytes=limits.get("max_image_bytes", 10**6))
    return [(r.name, r.error[0].value if r.error else "ok") for r in rows]


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_sound_tar_gives_its_samples_in_order(tmp_path):
    assert outcome(read(put(tmp_path / "a.tar", tar_bytes(THREE)))) == dict.fromkeys(
        ("000", "001", "002"), "ok"
    )


def test_names_that_begin_with_a_dot_slash_are_samples_as_well():
    # `tar -cf shard.tar -C folder .` writes such names; every one of them once vanished.
    data = tar_bytes([("./000.png", picture()), ("./sub/001.png", picture(1))])
    assert names_and_codes(data) == [("000", "ok"), ("sub/001", "ok")]


@pytest.mark.parametrize("offset", range(0, 3 * 2 * BLOCK + 2 * BLOCK, 64))
def test_a_tar_cut_anywhere_keeps_what_came_whole_and_says_that_it_was_cut(offset):
    whole = tar_bytes([(n, d) for n, d in THREE.items()])
    pitch = 2 * BLOCK  # one header, one block of data
    rows = names_and_codes(whole[:offset])
    complete = sum(offset >= i * pitch + BLOCK + len(data) for i, data in enumerate(THREE.values()))
    assert [r for r in rows if r[1] == "ok"] == [(f"{i:03}", "ok") for i in range(complete)]
    has_end_mark = offset >= 3 * pitch + BLOCK
    damaged = [r for r in rows if r[1] == "shard_damaged"]
    assert len(damaged) == (0 if has_end_mark else 1)


def test_a_tar_cut_within_a_side_member_is_said_to_be_damaged():
    # The image before it is whole and its row good; the samples after it once vanished unsaid.
    members = [("000.png", picture()), ("000.json", b"{}" * 900), ("001.png", picture(1))]
    data = tar_bytes(members)[: 3 * BLOCK + 700]
    assert names_and_codes(data) == [("%damaged-1", "shard_damaged"), ("000", "ok")]


def test_a_hole_in_the_middle_costs_the_samples_in_it_and_no_other():
    whole = bytearray(tar_bytes({f"{n:03}.png": picture(n) for n in range(9)}))
    whole[4 * 1024 + 100 : 4 * 1024 + 400] = b"\xff" * 300  # the header of 004
    codes = dict(names_and_codes(bytes(whole)))
    assert codes.pop("%damaged-1") == "shard_damaged"
    assert codes == {f"{n:03}": "ok" for n in range(9) if n != 4}


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 20 * 1024),
    length=st.integers(1, 3000),
    filling=st.sampled_from([b"\0", b"\xff", b"ustar"]),
    cut=st.booleans(),
)
def test_damage_of_any_kind_never_raises_and_never_doubles_an_id(start, length, filling, cut):
    whole = bytearray(tar_bytes({f"{n:03}.png": picture(n) for n in range(20)}))
    if cut:
        del whole[start : start + length]
    else:
        whole[start : start + length] = (filling * length)[:length]
    rows = names_and_codes(bytes(whole))
    names = [name for name, _ in rows]
    assert len(set(names)) == len(names)
    # Where bytes are gone, the next header can lie in what the last sound one says is its data.
    touched = {*range(start // 1024, (start + length) // 1024 + 1 + cut)}
    assert {f"{n:03}" for n in range(20) if n not in touched} <= set(names)


def test_a_key_seen_again_is_a_row_of_its_own():
    data = tar_bytes([("a.png", picture(1)), ("b.png", picture(2)), ("a.png", picture(3))])
    assert names_and_codes(data) == [("a", "ok"), ("b", "ok"), ("a.png", "ok")]


def test_members_out_of_order_still_give_each_image_once():
    data = tar_bytes([("a.txt", b"x"), ("b.png", picture()), ("a.png", picture(1))])
    assert sorted(names_and_codes(data)) == [("a", "ok"), ("b", "ok")]


def test_a_sample_without_an_image_is_image_missing():
    data = tar_bytes([("a.txt", b"x"), ("b.png", picture()), ("c.png", b"")])
    assert dict(names_and_codes(data)) == {"a": "image_missing", "b": "ok", "c": "image_missing"}


def test_a_key_ends_at_the_first_dot_and_extensions_of_any_case_count():
    data = tar_bytes([("d.ir/a.b.JPG", picture()), ("c.jpeg", picture(1)), ("e.WebP", picture(2))])
    assert names_and_codes(data) == [("d.ir/a", "ok"), ("c", "ok"), ("e", "ok")]


def test_a_link_in_an_images_place_is_a_row_in_error():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(picture())
        tar.addfile(info, io.BytesIO(picture()))
        tar.addfile(link("b.png", "a.png", tarfile.LNKTYPE))
        tar.addfile(link("c.png", "/etc/passwd", tarfile.SYMTYPE))
    assert dict(names_and_codes(file.getvalue())) == {
        "a": "ok", "b": "image_missing", "c": "image_missing",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../../etc/x.png", "/etc/x.png", "a/../../x.png"])
def test_a_member_cannot_leave_the_output_folder_and_is_a_row_like_any_other(tmp_path, name):
    (row,) = read(put(tmp_path / "a.tar", tar_bytes({name: picture()})))
    assert row["unit"] == "a"
    assert row["images"] == [picture()]


def test_separators_in_a_key_are_escaped_so_that_ids_stay_unique():
    data = tar_bytes([("a#1.png", picture()), ("a%231.png", picture(1)), ("b~0.png", picture(2))])
    assert [n for n, _ in names_and_codes(data)] == ["a%231", "a%25231", "b%7E0"]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (b'{"caption": "a \\ud800 half"}', "a \\ud800 half"),  # once a dead job
        (b"[" * 100_000, None),  # once a RecursionError
        (b'{"caption": ', None),
        (b"\xff\xfe", None),
        (b"[1]", None),
        (b'{"caption": ' + b"9" * 5000 + b"}", None),
    ],
)
def test_bad_json_gives_null_columns_and_the_image_its_row(tmp_path, text, caption):
    path = put(tmp_path / "a.tar", tar_bytes({"a.png": picture(), "a.json": text}))
    (row,) = read(path, reading(None, "caption"))
    assert json.loads(row["columns"]) == {"caption": caption}


def test_kept_text_with_a_half_surrogate_is_carried_as_an_escape(tmp_path):
    members = {"a.png": picture(), "a.json": b'{"caption": "\\ud83d"}'}
    path = put(tmp_path / "a.tar", tar_bytes(members))
    keep = keep_schema(["caption"], units_of(path)[0], {"caption": "x"})
    (row,) = read(path, reading(keep))
    assert row["keep.caption"] == "\\ud83d"


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"", ["shard_damaged"]),
        (b"\0" * 10240, []),  # what tarfile writes for no members
        (b"<html>not found</html>", ["shard_damaged"]),
        (b"<html>" * 5000, ["shard_damaged"]),
        (b"\x1f\x8b" + b"z" * 4000, ["shard_damaged"]),
    ],
    ids=["no byte", "no member", "short html", "html", "gzip"],
)
def test_what_is_no_tar_is_one_damaged_row_and_an_empty_tar_is_none(tmp_path, data, rows):
    assert [r["error_code"] for r in read(put(tmp_path / "a.tar", data))] == rows


def test_a_member_over_the_limit_is_too_large_and_its_neighbours_are_read():
    data = tar_bytes([("a.png", picture()), ("b.png", b"x" * 5000), ("c.png", picture(1))])
    codes = dict(names_and_codes(data, max_image_bytes=1000))
    assert codes == {"a": "ok", "b": "image_too_large", "c": "ok"}


def test_a_pax_size_that_is_no_number_is_not_believed():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.size, info.pax_headers = len(picture()), {"comment": "x" * 19}
        tar.addfile(info, io.BytesIO(picture()))
    odd = file.getvalue().replace(b"comment=" + b"x" * 19, b"size=" + "²".encode() * 11)
    assert names_and_codes(odd) == [("a", "ok")]


def test_stray_bytes_in_a_name_are_kept_readable(tmp_path):
    data = tar_bytes({"caf\udce9.png": picture()})
    (row,) = read(put(tmp_path / "a.tar", data))
    assert row["key"] == "caf\\xe9"


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst"])
def test_a_compressed_tar_is_refused_and_not_left_out(tmp_path, name):
    put(tmp_path / "in" / name, b"z")
    put(tmp_path / "in" / "a.tar", tar_bytes(THREE))
    with pytest.raises(UsageError, match="compressed tars are not read"):
        units_of(tmp_path / "in")
    with pytest.raises(UsageError, match="compressed tars are not read"):
        units_of(tmp_path / "in" / name)
