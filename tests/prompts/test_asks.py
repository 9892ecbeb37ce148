"""What is asked of an image, from each place that questions come from."""

from typing import Any

import pytest

from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.prompts.asks import Ask, asks_of, prompt_columns
from llava_batch.prompts.guards import Guards, split_guarded, unguarded
from llava_batch.prompts.recipe import load_recipe

GUARDS = Guards(["</s>"])


def asked(job: Job, columns: dict | None = None, **more) -> list[Ask]:
    return asks_of(job, "unit", "key", columns or {}, GUARDS, **more)


def texts(asks: list[Ask]) -> list[tuple[str | None, list[str]]]:
    return [(a.question_id, [unguarded(t) for t in a.turns]) for a in asks]


def test_a_caption_is_one_ask_of_one_turn_without_an_id() -> None:
    assert asked(Job(prompt="Describe.")) == [Ask(None, ("Describe.",))]


def test_one_question_has_no_id_and_several_have_their_numbers() -> None:
    assert texts(asked(Job(question=("A?",)))) == [(None, ["A?"])]
    assert texts(asked(Job(question=("A?", "B?")))) == [("0", ["A?"]), ("1", ["B?"])]


def test_a_dialogue_is_one_ask_with_a_turn_for_each_question() -> None:
    assert texts(asked(Job(question=("A?", "B?"), dialogue=True))) == [(None, ["A?", "B?"])]


def test_a_prompt_takes_a_columns_value_and_guards_it() -> None:
    (ask,) = asked(Job(prompt="Alt: {alt}. </s>"), {"alt": "a <image> </s>"})
    assert [p for p, fenced in split_guarded(ask.turns[0]) if fenced] == ["<image>", "</s>", "</s>"]


def test_a_null_column_spoils_this_rows_ask_and_keeps_its_place() -> None:
    job = Job(question=("Is it {what}?", "Why?"))
    assert asked(job, {"what": None}) == [
        Ask("0", (), "column what is null"),
        Ask("1", ("Why?",)),
    ]


def test_one_bad_turn_spoils_its_dialogue() -> None:
    (ask,) = asked(Job(question=("Is it {what}?", "Why?"), dialogue=True), {"what": None})
    assert ask.why_not == "column what is null"


# A column of questions


def test_a_column_gives_the_rows_question() -> None:
    job = Job(question_column="q")
    assert texts(asked(job, {"q": "Is it {red} </s>?"})) == [(None, ["Is it {red} </s>?"])]
    assert ("</s>", True) in split_guarded(asked(job, {"q": "a </s>"})[0].turns[0])


def test_a_column_of_lists_gives_numbered_questions() -> None:
    job = Job(question_column="q")
    assert texts(asked(job, {"q": ["A?", "B?"]})) == [("0", ["A?"]), ("1", ["B?"])]


@pytest.mark.parametrize("value", [None, "", []])
def test_a_row_without_a_question_is_a_bad_prompt_not_a_row_less(value) -> None:
    assert asked(Job(question_column="q"), {"q": value}) == [
        Ask(None, (), "column q is null or empty")
    ]


def test_a_null_in_a_list_spoils_its_own_place_and_moves_no_other() -> None:
    # Once dropped without a word, and the questions behind it took other numbers.
    found = asked(Job(question_column="q"), {"q": ["A?", None, "C?"]})
    assert [(a.question_id, a.why_not) for a in found] == [
        ("0", None),
        ("1", "column q is null or empty"),
        ("2", None),
    ]


def test_a_list_of_nothing_but_nulls_still_gives_rows() -> None:
    found = asked(Job(question_column="q"), {"q": [None]})
    assert [(a.question_id, bool(a.why_not)) for a in found] == [("0", True)]


def test_a_value_that_is_no_text_is_a_bad_prompt() -> None:
    (ask,) = asked(Job(question_column="q"), {"q": [["nested"]]})
    assert ask.why_not == "column q holds ['nested'], which is not text"


def test_a_column_of_lists_can_be_a_dialogue() -> None:
    job = Job(question_column="q", dialogue=True)
    assert texts(asked(job, {"q": ["A?", "B?"]})) == [(None, ["A?", "B?"])]


# A file of questions


def test_a_file_gives_its_questions_with_their_ids() -> None:
    job = Job(questions="q.jsonl")
    seen = []

    def lookup(unit: str, key: str, sha256: str | None) -> list[tuple[str, str]]:
        seen.append((unit, key, sha256))
        return [("q7", "Is it {red}?"), ("q9", "Why </s>?")]

    found = asked(job, lookup=lookup, sha256="ab")
    assert texts(found) == [("q7", ["Is it {red}?"]), ("q9", ["Why </s>?"])]
    assert ("</s>", True) in split_guarded(found[1].turns[0])
    assert seen == [("unit", "key", "ab")]


def test_an_image_that_no_question_joins_is_asked_nothing() -> None:
    for dialogue in (False, True):
        assert asked(Job(questions="q.jsonl", dialogue=dialogue), lookup=lambda *a: []) == []


# Suffix


def test_the_suffix_stands_behind_every_turn() -> None:
    job = Job(question=("A?", "B?"), dialogue=True, suffix="\nAnswer briefly.")
    assert texts(asked(job)) == [(None, ["A?\nAnswer briefly.", "B?\nAnswer briefly."])]


def test_a_suffix_that_a_question_has_is_not_doubled() -> None:
    job = Job(question=("A?\nAnswer briefly.", "B?"), suffix="\nAnswer briefly.")
    assert texts(asked(job)) == [("0", ["A?\nAnswer briefly."]), ("1", ["B?\nAnswer briefly."])]


def test_a_guarded_suffix_is_not_doubled_either() -> None:
    job = Job(question_column="q", suffix=" End with </s>")
    assert texts(asked(job, {"q": "A? End with </s>"})) == [(None, ["A? End with </s>"])]


def test_a_suffix_is_text_in_which_braces_stay_braces() -> None:
    assert texts(asked(Job(prompt="A?", suffix=" {x}"))) == [(None, ["A? {x}"])]


# Recipes


def test_a_recipe_asks_the_same_of_the_same_image() -> None:
    recipe = load_recipe("conversation")
    job = Job(recipe="conversation")
    first = asked(job, recipe=recipe)
    assert first == asked(job, recipe=recipe)
    assert len(first) == 1 and len(first[0].turns) == recipe.num_turns
    assert first[0].question_id is None


# Columns


@pytest.mark.parametrize(
    ("job", "columns"),
    [
        (Job(prompt="{b} {a}"), ["b", "a"]),
        (Job(question=("{a}", "{c} {a}")), ["a", "c"]),
        (Job(question_column="q"), ["q"]),
        (Job(questions="q.jsonl"), []),
        (Job(prompt="{{a}}"), []),
    ],
)
def test_only_the_columns_that_will_be_asked_for_are_read(job: Job, columns: list[str]) -> None:
    assert prompt_columns(job) == columns


@pytest.mark.parametrize("flag", ["prompt", "question"])
def test_braces_that_cannot_be_read_are_refused_at_start(flag: str) -> None:
    value: Any = "{" if flag == "prompt" else ("fine", "{")
    with pytest.raises(UsageError, match=f"--{flag} '{{': "):
        prompt_columns(Job(**{flag: value}))
