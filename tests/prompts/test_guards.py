"""Text that users and their data bring stays mere text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.prompts.guards import Guards, split_guarded, unguarded

GUARDS = Guards(["<s>", "</s>", "<pad>", "<|im_end|>"])


def test_special_tokens_in_a_question_are_fenced_and_its_image_mark_is_not() -> None:
    pieces = split_guarded(GUARDS.text("<image>\nWhat is </s> in <pad>?"))
    assert pieces == [
        ("<image>\nWhat is ", False),
        ("</s>", True),
        (" in ", False),
        ("<pad>", True),
        ("?", False),
    ]


def test_an_image_mark_in_a_columns_value_is_seven_characters() -> None:
    assert split_guarded(GUARDS.value("an <image> tag")) == [
        ("an ", False),
        ("<image>", True),
        (" tag", False),
    ]


def test_the_words_user_and_assistant_are_no_special_tokens() -> None:
    assert GUARDS.text("USER: hi ASSISTANT:") == "USER: hi ASSISTANT:"


def test_nothing_of_a_fenced_token_is_left_for_a_template_to_find() -> None:
    assert "</s>" not in GUARDS.text("a</s>b")
    assert "s" not in GUARDS.value("</s>")


texts_with_marks = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from(["<s>", "</s>", "<pad>", "<image>", "<|im_end|>", "\ufdd0", "\ufdd1"]),
        st.sampled_from(["\ufdd060.47\ufdd1", "USER:", "{", "}", "{x}", "<im", "age>", "\ufdd0answer0\ufdd1"]),
    ),
    max_size=8,
).map("".join)  # fmt: skip


@given(texts_with_marks)
@settings(deadline=None)
def test_guarding_and_unguarding_give_back_every_text(text: str) -> None:
    assert unguarded(GUARDS.text(text)) == text
    assert unguarded(GUARDS.value(text)) == text


@given(texts_with_marks)
@settings(deadline=None)
def test_no_text_can_forge_a_special_token_or_an_answers_place(text: str) -> None:
    free = "".join(piece for piece, fenced in split_guarded(GUARDS.value(text)) if not fenced)
    assert not any(mark in free for mark in ("\ufdd0", "\ufdd1"))
    for piece, fenced in split_guarded(GUARDS.value(text)):
        assert fenced or not any(s in piece for s in ("<s>", "</s>", "<pad>", "<image>"))
