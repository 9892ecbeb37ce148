"""Answer rows: ids, turns, counts, and the codes of what went wrong."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.engine.request import Completion
from llava_batch.errors import RowError
from llava_batch.generate.answer_rows import body, failed, head, without_asks
from llava_batch.tables import load_schema

ROW = {
    "unit": "photos/a",
    "key": "dog.jpg",
    "mark": "",
    "id_base": "photos/a",
    "copied": None,
    "ordinal": 3,
    "end": False,
    "num_images": 1,
    "image_sha256": "ab",
    "width": 4,
    "height": 5,
    "error_code": None,
    "error_message": None,
}
ASK: dict[str, Any] = {
    "question_id": None,
    "questions": ["Who?", "Why?"],
    "segments": ["USER: <image>\nWho? ASSISTANT:", "</s>USER: Why? ASSISTANT:"],
    "token_ids": [[1, 9, 9, 9, 5], [2, 6]],
}
TURNS = [
    Completion(id="x", turn=0, token_ids=(11, 12), finish_reason="stop", mean_logprob=-0.5),
    Completion(id="x", turn=1, token_ids=(13,), finish_reason="length", mean_logprob=-0.25),
]


def test_the_columns_are_the_last_turns_and_every_turn_is_told() -> None:
    made = body(ASK, TURNS, [" A cat ", " It is"])
    assert made["turns"] == [
        {"question": "Who?", "answer": "A cat", "finish_reason": "stop", "answer_tokens": 2,
         "mean_logprob": -0.5},
        {"question": "Why?", "answer": "It is", "finish_reason": "length", "answer_tokens": 1,
         "mean_logprob": -0.25},
    ]  # fmt: skip
    assert {n: made[n] for n in made["turns"][1] if n != "question"} == {
        n: v for n, v in made["turns"][1].items() if n != "question"
    }
    assert made["status"] == "ok"


def test_the_prompt_is_the_exact_text_and_holds_every_answer_but_the_last() -> None:
    made = body(ASK, TURNS, [" A cat ", " It is"])
    assert made["prompt"] == "USER: <image>\nWho? ASSISTANT: A cat </s>USER: Why? ASSISTANT:"
    assert "It is" not in made["prompt"] and "USER" not in made["answer"]


def test_prompt_tokens_count_image_tokens_and_earlier_answers() -> None:
    assert body(ASK, TURNS, ["", ""])["prompt_tokens"] == 5 + 2 + 2
    one = ASK | {k: ASK[k][:1] for k in ("questions", "segments", "token_ids")}
    assert body(one, TURNS[:1], [""])["prompt_tokens"] == 5


def test_an_empty_answer_is_a_text_and_not_a_null() -> None:
    one = ASK | {k: ASK[k][:1] for k in ("questions", "segments", "token_ids")}
    made = body(one, [Completion(id="x")], [""])
    assert (made["answer"], made["answer_tokens"], made["mean_logprob"]) == ("", 0, None)


@pytest.mark.parametrize(
    ("engine_code", "code"),
    [
        ("prompt_too_long", RowError.PROMPT_TOO_LONG),
        ("bad_prompt", RowError.BAD_PROMPT),
        ("out_of_memory", RowError.OUT_OF_MEMORY),
        ("non_finite", RowError.ENGINE_FAILED),
        ("never heard of", RowError.ENGINE_FAILED),
        (None, RowError.ENGINE_FAILED),
    ],
)
def test_an_engines_refusal_becomes_a_code_of_the_table(engine_code, code) -> None:
    broken = Completion(id="x", turn=1, finish_reason="error", error_code=engine_code, error="why")
    made = body(ASK, [TURNS[0], broken], [" A cat", ""])
    assert made == {"status": "error", "error_code": code.value, "error_message": "why"}


def test_every_code_of_the_table_is_explained() -> None:
    assert all(code.sentence.endswith(".") for code in RowError)


def test_a_choice_is_told_with_its_share() -> None:
    one = ASK | {k: ASK[k][:1] for k in ("questions", "segments", "token_ids")}
    chosen = Completion(id="x", choice=1, probability=0.25, token_ids=(1,), mean_logprob=-9.0)
    assert body(one, [chosen], ["no"])["mean_logprob"] == pytest.approx(math.log(0.25))
    never = Completion(id="x", choice=1, probability=0.0)
    assert body(one, [never], ["no"])["mean_logprob"] == -math.inf


# Ids


_keys = st.text(st.sampled_from("ab#~%27E/."), min_size=1, max_size=6)


@given(st.lists(st.tuples(_keys, st.none() | _keys), unique=True, min_size=2, max_size=8))
@settings(deadline=None)
def test_no_two_questions_or_samples_share_an_id(pairs) -> None:
    ids = [
        head(ROW | {"key": key}, {"question_id": question}, sample, 2)["id"]
        for key, question in pairs
        for sample in range(2)
    ]
    assert len(set(ids)) == len(ids)


def test_samples_are_numbered_only_where_there_are_several() -> None:
    assert head(ROW, ASK, 0, 1)["id"] == "photos/a/dog.jpg"
    assert [head(ROW, ASK, i, 2)["id"] for i in range(2)] == [
        "photos/a/dog.jpg~0",
        "photos/a/dog.jpg~1",
    ]


def test_head_and_body_and_error_fill_columns_of_the_answers_table() -> None:
    columns = set(load_schema("answers").names)
    told = head(ROW, ASK, 0, 1) | body(ASK, TURNS, ["", ""])
    assert set(told) - columns == {"ordinal", "end"}
    assert columns - set(told) == {"error_code", "error_message"}
    assert set(failed("bad_prompt", "why")) <= columns


def test_an_end_row_and_an_unasked_image_have_no_siblings() -> None:
    made = without_asks(ROW)
    assert (made["siblings"], made["ordinal"], made["unit"]) == (0, 3, "photos/a")
