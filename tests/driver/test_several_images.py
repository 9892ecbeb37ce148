"""Questions that join several images: found as rows come and among loose files, counted, refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.driver.several_images import SeveralImages, refuse_shared_names
from llava_batch.errors import RunFailed, UsageError
from llava_batch.generate.answer_rows import generated_schema
from llava_batch.prompts.questions import Questions, read_questions
from tests.outputs import unit


def questions_of(
    folder: Path, *images: str, units: tuple[str, ...] = ("00000", "00001")
) -> Questions:
    """Questions numbered from 1, one for each of `images`."""
    path = folder / "q.jsonl"
    lines = [{"question_id": n, "image": i, "text": "What?"} for n, i in enumerate(images, 1)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return read_questions(str(path)).among(units)


def rows(*named: str, **more: Any) -> pa.Table:
    """One answer row for each `<unit>/<key>`, with what stands behind it in the id."""
    made = []
    for ident in named:
        name, _, rest = ident.partition("/")
        key = rest.split("#")[0].split("~")[0].split("%")[0]
        made.append({"id": ident, "unit": name, "key": key, "siblings": 1, "end": False} | more)
    return pa.Table.from_pylist(made, schema=generated_schema([]))


def test_a_bare_name_in_two_shards_is_refused_with_both_places(tmp_path: Path) -> None:
    # Once the question was asked of 000000 in every shard, without a word.
    watched = SeveralImages(questions_of(tmp_path, "000000.jpg"), refuse=True)
    watched.check(rows("00000/000000#1", "00000/000001"))
    with pytest.raises(RunFailed) as refused:
        watched.check(rows("00001/000000#1"))
    assert str(refused.value) == (
        "--questions: question 1 (of 000000.jpg) joins 00001/000000 and an image of unit 00000; name "
        "the image as UNIT/KEY in the file, or give --join-anywhere if all are meant; unit 00001 is "
        "left open"
    )
    assert watched.count == 1


@pytest.mark.parametrize(
    "second",
    ["00000/000000#1", "00000/000000#1~1", "00000/000000#7", "00000/000000"],
)
def test_one_image_s_rows_are_one_image_however_often_they_come(
    tmp_path: Path, second: str
) -> None:
    watched = SeveralImages(questions_of(tmp_path, "000000.jpg"), refuse=True)
    watched.check(rows("00000/000000#1~0", "00000/000001"))
    watched.check(rows(second))
    assert watched.count == 0


@pytest.mark.parametrize(
    ("image", "second"),
    [
        ("000000.jpg", "00000/000000%dup2"),
        ("42", "00000/COCO_val2014_000000000042"),
        ("a.jpg", "00000/more/a.jpg"),
    ],
)
def test_two_images_of_one_unit_are_two(tmp_path: Path, image: str, second: str) -> None:
    watched = SeveralImages(questions_of(tmp_path, image), refuse=True)
    watched.check(
        rows({"000000.jpg": "00000/000000", "42": "00000/42"}.get(image, "00000/b/a.jpg"))
    )
    with pytest.raises(RunFailed, match=r"joins .* and an image of unit 00000"):
        watched.check(rows(second))


def test_a_name_with_its_unit_is_one_image(tmp_path: Path) -> None:
    watched = SeveralImages(questions_of(tmp_path, "00000/000000.jpg"), refuse=True)
    watched.check(rows("00000/000000#1", "00001/000000"))
    assert watched.count == 0


def test_an_image_of_an_earlier_run_counts_too(tmp_path: Path) -> None:
    # A lake grows night by night: the second night's 000000 is another image.
    questions = questions_of(tmp_path, "000000.jpg", "1.jpg")
    before = np.array([questions.of(unit="00000", key="000000")[0].row == row for row in range(2)])
    watched = SeveralImages(questions, refuse=True, before=before, retried={"00000"})
    watched.check(rows("00000/000000#1", "00001/000001#2"))  # the earlier run's image, tried again
    with pytest.raises(RunFailed, match="joins 00001/000000 and an image of unit 00000"):
        watched.check(rows("00001/000000#1"))
    watched = SeveralImages(questions, refuse=True, before=before)
    with pytest.raises(RunFailed, match="joins 00001/000000 and an image that an earlier run"):
        watched.check(rows("00001/000000#1"))


def test_an_image_that_the_question_brings_is_one_wherever_it_lies(tmp_path: Path) -> None:
    watched = SeveralImages(questions_of(tmp_path, "sha256:" + "ab" * 32), refuse=True)
    watched.check(rows("00000/x#1", "00001/y#1", image_sha256="ab" * 32))
    assert watched.count == 0


def test_where_it_is_meant_it_is_counted_alone(tmp_path: Path) -> None:
    watched = SeveralImages(questions_of(tmp_path, "000000.jpg", "1", "2"), refuse=False)
    for name in ("00000", "00001"):
        watched.check(rows(f"{name}/000000#1", f"{name}/000001#2"))
    watched.check(rows("00001/000002#3"))
    assert watched.count == 2


def test_a_row_of_which_nothing_was_asked_joins_nothing(tmp_path: Path) -> None:
    watched = SeveralImages(questions_of(tmp_path, "000000.jpg"), refuse=True)
    watched.check(rows("00000/000000#1"))
    watched.check(rows("00001/000000", siblings=0))


def loose(name: str, *members: str) -> Any:
    return unit(name, kind="files", members=members)


def test_loose_files_are_refused_by_their_names_alone(tmp_path: Path) -> None:
    units = [
        loose("photos-00000", "a.jpg", "b.jpg"),
        loose("more-00000", "a.jpg", "sub/b.jpg", "c.jpg"),
    ]
    names = tuple(u.name for u in units)
    bare = questions_of(tmp_path, "a.jpg", "b.jpg", "c.jpg", units=names)
    with pytest.raises(UsageError) as refused:
        refuse_shared_names(bare, units)
    assert str(refused.value).startswith(
        "--questions: 2 of the file's questions join several images, such as question 1 (of a.jpg) "
        "joins more-00000/a.jpg and an image of unit photos-00000; name the image as UNIT/KEY"
    )
    exact = questions_of(
        tmp_path, "photos/a.jpg", "more/a.jpg", "more/sub/b.jpg", "c.jpg", units=names
    )
    refuse_shared_names(exact, [*units, unit("00000")])


NAMES = st.sampled_from(
    ["1", "01.jpg", "2.png", "x/1.jpg", "y/1.jpg", "u0/1.jpg", "u1/x/1.jpg", "a"]
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(NAMES, min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from(["u0", "u1", "u2"]), NAMES), max_size=12, unique=True),
)
def test_the_count_is_that_of_the_questions_with_two_images_or_more(
    tmp_path_factory: pytest.TempPathFactory, images: list[str], files: list[tuple[str, str]]
) -> None:
    questions = questions_of(tmp_path_factory.mktemp("q"), *images, units=("u0", "u1", "u2"))
    joined = Counter(q.row for name, key in files for q in questions.of(unit=name, key=key))
    several = sum(count > 1 for count in joined.values())
    watched = SeveralImages(questions, refuse=False)
    for name, key in [*files, *files]:
        watched.add(f"{name}/{key}", name, key)
    assert watched.count == several
    units = [loose(name, *(k for n, k in files if n == name)) for name in ("u0", "u1", "u2")]
    if several:
        with pytest.raises(UsageError, match=f": {several} of the file's questions"):
            refuse_shared_names(questions, units)
    else:
        refuse_shared_names(questions, units)
