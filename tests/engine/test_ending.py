"""Stop strings end an answer where they always did, without its whole text at every token."""

import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llava_batch.demo import model_path
from llava_batch.engine import Request
from llava_batch.engine.ending import Ending, ending
from llava_batch.engine.sequence import sequences
from tests.sentencepiece_like import sentencepiece_like


def by_the_whole(answer, strings, decode):
    """The rule: the earliest stop string in the whole text, and the tokens that end before it."""
    whole = decode(answer)
    places = [whole.find(stop) for stop in strings]
    begin = min((place for place in places if place >= 0), default=-1)
    if begin < 0:
        return None
    kept = len(answer) - 1
    while kept > 0 and len(decode(answer[:kept])) > begin:
        kept -= 1
    return Ending(reason="stop", num_tokens=kept, text=whole[:begin])


def found_by(rule, answer):
    """The first ending, and after how many tokens."""
    for size in range(1, len(answer) + 1):
        end = rule(answer[:size])
        if end is not None:
            return size, end
    return None


def engines_rule(strings, decode):
    (sequence,) = sequences(
        Request(id="a", prompt_ids=[1], stop=tuple(strings), max_new_tokens=10**6), [], -1, []
    )

    def rule(answer):
        sequence.ids[1:] = answer
        return ending(sequence, frozenset(), decode)

    return rule


@functools.cache
def tokenizer(kind):
    if kind == "byte level":
        return AutoTokenizer.from_pretrained(model_path())
    made = sentencepiece_like("legacy" if kind == "stripped" else "first", image_is_special=True)
    if kind == "stripped":  # Llama's: the first blank of the text is left out
        from tokenizers import decoders

        backend = made.backend_tokenizer
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])
    return made


def decoder(kind):
    if kind == "two letters":
        return lambda ids: "".join(chr(97 + i % 5) + chr(97 + i % 3) for i in ids)
    made = tokenizer(kind)
    return lambda ids: made.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


KINDS = ["byte level", "spaced", "stripped", "two letters"]
WORDS = "A red circle, 中文字 and ﷽ ééé 👩‍👩‍👧 the  end.\n\n### USER: 🙂🙂 naïve — ok"


@functools.cache
def pieces(kind):
    """Token ids that make text, broken text and none."""
    if kind == "two letters":
        return [[n] for n in range(30)]
    made = tokenizer(kind)
    encode = functools.partial(made, add_special_tokens=False)
    words = [encode(word).input_ids for word in WORDS.split(" ")]
    single = [[n] for n in range(len(made))]
    special = [[n] for n in made.all_special_ids]
    return [*words * 12, *single, *special * 4]


@settings(max_examples=600, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    length=st.integers(1, 120),
    size=st.integers(1, 9),
    count=st.integers(1, 3),
)
def test_a_stop_string_is_found_when_and_where_the_whole_text_shows_it(
    kind, seed, length, size, count
):
    chance, decode = random.Random(seed), decoder(kind)
    answer: list[int] = []
    while len(answer) < length:
        answer += chance.choice(pieces(kind))
    strings = []
    for _ in range(count):
        text = decode(answer[chance.randrange(len(answer)) :]) or "x"
        begin = chance.randrange(len(text))
        strings.append(text[begin : begin + size])
    expected = found_by(lambda ids: by_the_whole(ids, strings, decode), answer)
    assert found_by(engines_rule(strings, decode), answer) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_answer_is_decoded_in_proportion_to_its_length(kind):
    plain, decoded = decoder(kind), 0

    def counted(ids):
        nonlocal decoded
        decoded += len(ids)
        return plain(ids)

    chance = random.Random(0)
    answer: list[int] = []
    words = pieces(kind)[: len(WORDS.split(" "))]
    while len(answer) < 1000:
        answer += chance.choice(words)
    assert found_by(engines_rule(["\nHuman:", "<end>"], counted), answer) is None
    assert decoded < 100 * len(answer)
