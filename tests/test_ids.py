"""Ids are unique, readable, and can be taken apart again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.ids import image_id, image_of, name_in_unit, name_of, printable, row_id

_texts = st.text(st.sampled_from("ab#~%27E/."), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("key", "mark", "question_id", "expected"),
    [
        ("a/dog.jpg", "", None, "photos/a/dog.jpg"),
        ("a/dog.jpg", "", "7", "photos/a/dog.jpg#7"),
        ("a/dog.jpg", "%dup2", None, "photos/a/dog.jpg%dup2"),
        ("a#1~2%", None, "q#~%", "photos/a%231%7E2%25#q%23%7E%25"),
        (b"\xff.jpg".decode("utf-8", "surrogateescape"), "", None, "photos/\\xff.jpg"),
    ],
)
def test_an_id_is_unit_key_and_question_with_its_separators_escaped(
    key: str, mark: str | None, question_id: str | None, expected: str
) -> None:
    assert row_id(image_id("photos", key, mark), question_id) == expected


def test_a_sample_is_the_last_part() -> None:
    assert row_id("u/k", "3", 1) == "u/k#3~1"
    assert row_id("u/k", None, 0) == "u/k~0"


@given(
    _texts,
    _texts,
    st.sampled_from(["", "%dup2", "%row"]),
    st.none() | _texts,
    st.none() | st.integers(0, 9),
)
@settings(deadline=None)
def test_the_image_is_found_again_in_every_id_of_its_rows(
    unit: str, key: str, mark: str, question_id: str | None, sample: int | None
) -> None:
    image = image_id(unit, key, mark)
    made = row_id(image, question_id, sample)
    assert image_of(made, unit) == image
    assert name_of(made, unit) == name_in_unit(key, mark)


@given(_texts, _texts, _texts, st.none() | _texts, st.none() | st.integers(0, 9))
@settings(deadline=None)
def test_an_image_of_a_table_with_keys_is_found_by_its_unit_whose_name_the_tables_begins(
    table: str, file: str, key: str, question_id: str | None, sample: int | None
) -> None:
    image = image_id(table, key, "")
    made = row_id(image, question_id, sample)
    assert image_of(made, f"{table}/{file}") == image
    assert name_of(made, table) == name_in_unit(key, "")


@given(st.text())
@settings(deadline=None)
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
