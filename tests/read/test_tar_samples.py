"""Names in tars: every image member is one row with an id of its own, and gets its own side files."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_batch.read import tar_samples
from llava_batch.read.image_names import is_image
from llava_batch.read.row import Row
from llava_batch.read.tar import read_tar
from tests.shards import picture, put, reading, rows_of, tar_bytes, units_of

OLDER = Path(__file__).parents[1] / "fixtures" / "answers_0_1_0"
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(names: list[str], **how: Any) -> list[Row]:
    """The rows of a tar of these members; a side file's text is its own name."""
    members = [(n, picture(i) if is_image(n) else n.encode()) for i, n in enumerate(names)]
    return [*read_tar(io.BytesIO(tar_bytes(members)), max_image_bytes=10**6, **how)]


def columns(names: list[str], **how: Any) -> dict[str, dict[str, Any]]:
    """Each row's columns, by its name in the unit."""
    return {row.name: row.columns for row in rows(names, **how)}


def dated(count: int) -> list[str]:
    return [f"2021.05.03_{n:03}.{e}" for n in range(count) for e in ("jpg", "txt")]


def test_images_whose_names_hold_dots_get_each_their_own_side_file():
    # All of them got the first one's caption.
    found = [row.columns for row in rows(dated(3))]
    assert found == [{"txt": f"2021.05.03_{n:03}.txt"} for n in range(3)]


class Counted(io.BytesIO):
    """Says how far it was read."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_a_tar_of_dated_names_is_read_with_a_bounded_part_of_it_in_memory(monkeypatch):
    # It was one sample, and all its images were held until its end.
    monkeypatch.setattr(tar_samples, "HELD_BYTES", 20 * 1024, raising=False)
    members = [(n, b"x" * 1024) for n in dated(100)]
    stream = Counted(tar_bytes(members))
    ahead = []
    for number, _ in enumerate(read_tar(stream, max_image_bytes=10**6)):
        ahead.append(stream.taken - number * 3 * 1024)
    assert len(ahead) == 100
    assert max(ahead) < 60 * 1024


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["x.jpg", "x.v2.jpg"], ["x", "x.v2.jpg"]),
        (["x.v2.jpg", "x.jpg"], ["x", "x.jpg"]),
        (["a.jpg", "a.png"], ["a", "a.png"]),
        (["a.jpg", "a.jpg"], ["a", "a.jpg"]),
        (["a.jpg", "b.jpg", "a.jpg", "a.jpg"], ["a", "b", "a.jpg", "a.jpg%dup2"]),
        (["d.1/a.left.JPG", "d.1/a.right.JPG"], ["d.1/a", "d.1/a.right.JPG"]),
        (["caf\udce9.jpg", "caf\\xe9.jpg"], ["caf\\xe9", "caf\\xe9.jpg"]),  # once one id twice
        (["a\nb/x.jpg"], ["a\nb/x"]),
    ],
)
def test_every_image_member_is_a_row_whatever_its_name_shares_with_others(tmp_path, names, keys):
    # Those beyond the first were left out, and nothing said so.
    assert [r.name for r in rows(names)] == keys
    path = put(tmp_path / "a.tar", tar_bytes([(n, picture(i)) for i, n in enumerate(names)]))
    assert [r["images"] for r in rows_of(units_of(path)[0])] == [
        [picture(i)] for i in range(len(names))
    ]


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["x.jpg", "x.meta.txt"], {"x": {"meta.txt": "x.meta.txt"}}),
        (["x.meta.txt", "x.jpg"], {"x": {"meta.txt": "x.meta.txt"}}),
        (
            ["x.jpg", "x.v2.txt", "x.txt", "x.v2.jpg"],
            {"x": {"txt": "x.txt"}, "x.v2.jpg": {"txt": "x.v2.txt"}},
        ),
        (["1.jpg", "10.txt", "10.jpg"], {"1": {}, "10": {"txt": "10.txt"}}),
        (
            ["x.left.jpg", "x.right.jpg", "x.txt", "x.left.txt"],
            {"x": {"txt": "x.left.txt"}, "x.right.jpg": {"txt": "x.txt"}},
        ),
        (["x.jpg", "x.txt", "x.png"], {"x": {"txt": "x.txt"}, "x.png": {"txt": "x.txt"}}),
        (["x.jpg", "y.jpg", "x.txt"], {"x": {}, "y": {}}),
        (["x.txt", "y.jpg", "x.jpg"], {"y": {}, "x": {"txt": "x.txt"}}),
        (["x.jpg.txt", "x.jpg"], {"x": {"jpg.txt": "x.jpg.txt"}}),
    ],
    ids=[
        "after", "before", "a longer stem", "a stem is no mere beginning", "shared by several",
        "two formats", "too late", "early", "with the extension",
    ],
)  # fmt: skip
def test_a_side_file_is_joined_to_the_longest_stem_that_its_name_begins_with(names, joined):
    assert columns(names) == joined


def test_a_sample_that_comes_again_has_side_files_of_its_own():
    data = tar_bytes(
        [("a.jpg", picture(1)), ("a.txt", b"one"), ("a.jpg", picture(2)), ("a.txt", b"two")]
    )
    found = read_tar(io.BytesIO(data), max_image_bytes=10**6)
    assert [(r.name, r.columns) for r in found] == [
        ("a", {"txt": "one"}),
        ("a.jpg", {"txt": "two"}),
    ]


def test_masks_beside_images_are_side_files_where_the_extension_of_images_is_given(tmp_path):
    names = ["a.jpg", "a.png", "b.png", "b.JPG", "c.png"]
    path = put(tmp_path / "a.tar", tar_bytes([(n, picture(i)) for i, n in enumerate(names)]))
    found = rows_of(units_of(path)[0], reading(image_column="jpg"))
    assert [(r["key"], r["error_code"]) for r in found] == [
        ("a", None), ("b", None), ("c", "image_missing"),
    ]  # fmt: skip
    assert found[1]["images"] == [picture(3)]
    assert found[2]["error_message"] == "no jpg member"


def test_an_extension_of_two_parts_picks_one_view_and_all_else_is_beside_it(tmp_path):
    names = ["x.left.jpg", "x.right.jpg", "x.txt", "y.left.jpg"]
    found = columns(names, image_extension="left.jpg")
    assert found == {"x": {"txt": "x.txt"}, "y": {}}


def test_side_files_that_wait_for_their_image_are_bounded_and_the_newest_are_kept(monkeypatch):
    monkeypatch.setattr(tar_samples, "WAITING_BYTES", 30)
    names = [f"{n}.txt" for n in range(9)] + [f"{n}.jpg" for n in range(9)]
    assert columns(names) == {
        str(n): {"txt": f"{n}.txt"} if n >= 3 else {} for n in range(9)
    }  # fmt: skip


def test_rows_answered_by_the_first_rules_are_made_by_them_again():
    assert [r.name for r in rows(dated(2), rules=1)] == ["2021.05.03_000", "2021.05.03_001"]
    names = ["x.jpg", "x.v2.jpg", "a.jpg", "a.png", "a.jpg", "b.txt", "a.jpg"]
    assert [r.name for r in rows(names, rules=1)] == ["x", "a", "a%dup2", "b"]
    assert columns(["l.1.jpg", "l.2.jpg", "l.txt"], rules=1) == {
        "l.1": {"txt": "l.txt"}, "l.2": {"txt": "l.txt"},
    }  # fmt: skip
    masked = ["a.jpg", "a.png"]
    assert [r.name for r in rows(masked, rules=1, image_extension="png")] == ["a"]


def test_the_tars_of_an_older_folder_have_the_ids_they_were_answered_under():
    for name in ("dotted", "plain"):
        (unit,) = units_of(OLDER / "input" / f"{name}.tar")
        answered = pq.read_table(OLDER / "captions" / f"{name}.parquet")
        found = rows_of(replace(unit, rules=1))
        assert [f"{name}/{r['key']}" for r in found] == answered["id"].to_pylist()


def test_a_unit_says_by_which_rules_its_rows_are_made(tmp_path):
    path = put(tmp_path / "a.tar", tar_bytes([(n, picture()) for n in ("x.jpg", "x.v2.jpg")]))
    (unit,) = units_of(path)
    assert [r["key"] for r in rows_of(unit)] == ["x", "x.v2.jpg"]
    assert [r["key"] for r in rows_of(replace(unit, rules=1))] == ["x"]


# Any names

KEYS = ("a", "b", "2021", "d.1/a", "d/2021", "ab")
MIDDLES = ("", ".05.03_000", ".05.03_001", ".05", ".v2", ".jpg")
IMAGES = (".jpg", ".png", ".JPG")
SIDES = (".txt", ".cls", ".meta.txt", ".seg.cls")


names_of_images = st.tuples(*map(st.sampled_from, (KEYS, MIDDLES, IMAGES))).map("".join)
names_of_sides = st.tuples(*map(st.sampled_from, (KEYS, MIDDLES, SIDES))).map("".join)
any_names = st.lists(st.one_of(names_of_images, names_of_sides), max_size=14)


def stem(name: str) -> str:
    return name.rpartition(".")[0]


def key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def expected(names: list[str]) -> dict[str, dict[str, str]]:
    """Each image's columns, by DESIGN's rule, applied to all the tar at once."""
    images = [n for n in names if is_image(n)]
    own: dict[str, dict[str, str]] = {n: {} for n in images}
    shared: dict[str, dict[str, str]] = {n: {} for n in images}
    for side in sorted((n for n in names if not is_image(n)), key=len):
        stems = [stem(n) for n in images if side.startswith(f"{stem(n)}.")]
        for image in images:
            if stems and stem(image) == max(stems, key=len):
                own[image][side[len(stem(image)) + 1 :]] = side
            elif not stems and stem(image).startswith(f"{stem(side)}."):
                shared[image][side.rpartition(".")[2]] = side
    return {n: shared[n] | own[n] for n in images}


def by_image(names: list[str], found: list[Row]) -> dict[str, dict[str, Any]]:
    number = {picture(i): n for i, n in enumerate(names)}
    return {number[r.images[0]]: r.columns for r in found if r.images}


@settings(QUIET, max_examples=300)
@given(names=any_names.map(lambda names: sorted(dict.fromkeys(names), key=key)))
def test_in_a_well_formed_tar_every_image_is_a_row_with_all_its_side_files(names):
    found = rows(names)
    assert by_image(names, found) == expected(names)
    assert len({r.name for r in found}) == len(found)
    without = {key(n) for n in names} - {key(n) for n in names if is_image(n)}
    assert {r.key for r in found if r.error} == without


@settings(QUIET, max_examples=300)
@given(names=any_names, held=st.sampled_from([1, 2, 256]), waiting=st.sampled_from([0, 20, 2**20]))
def test_in_any_tar_every_image_is_one_row_and_none_has_anothers_side_files(
    monkeypatch, names, held, waiting
):
    monkeypatch.setattr(tar_samples, "HELD_IMAGES", held, raising=False)
    monkeypatch.setattr(tar_samples, "WAITING_BYTES", waiting, raising=False)
    found = rows(names)
    images = [(n, picture(i)) for i, n in enumerate(names) if is_image(n)]
    assert [r.images[0] for r in found if r.images] == [data for _, data in images]
    assert len({r.name for r in found}) == len(found)
    without = {key(n) for n in names} - {key(n) for n, _ in images}
    assert Counter(r.key for r in found if r.error) == Counter(without)
    for (name, _), row in zip(images, (r for r in found if r.images), strict=True):
        assert row.key in (key(name), name)
        for side in row.columns.values():
            own = side.startswith(f"{stem(name)}.")
            assert own or stem(name).startswith(f"{stem(side)}.")


@settings(QUIET, max_examples=200)
@given(
    samples=st.lists(
        st.tuples(
            st.sampled_from(["2021.05.03_{}", "2021.{}", "2021.05.{}.a", "{}"]),
            st.permutations([".jpg", ".txt", ".meta.txt"]),
        ),
        max_size=12,
    ),
    held=st.sampled_from([1, 2, 256]),
)
def test_side_files_next_to_their_image_are_joined_however_little_is_held(
    monkeypatch, samples, held
):
    monkeypatch.setattr(tar_samples, "HELD_IMAGES", held, raising=False)
    stems = [name.format(number) for number, (name, _) in enumerate(samples)]
    names = [s + e for s, (_, ends) in zip(stems, samples, strict=True) for e in ends]
    wanted = [{"txt": f"{s}.txt", "meta.txt": f"{s}.meta.txt"} for s in stems]
    assert [row.columns for row in rows(names)] == wanted
