"""Recipes (draws, files), filters, and the instruction tables that come out of them."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.instruct.conversations import conversation, write_instructions
from llava_batch.instruct.filters import (
    Verdict,
    count,
    is_refusal,
    judge,
    repetition,
    similarity,
)
from llava_batch.prompts.recipe import Filters, Pool, Recipe, draw, load_recipe, recipe_names
from llava_batch.tables import load_schema

LONG = "A brown dog lies on a green sofa beside two cushions and looks at the door."


def recipe(*pools: tuple[int, list[str]], **more: Any) -> Recipe:
    turns = tuple(Pool(draw=number, prompts=tuple(prompts)) for number, prompts in pools)
    return Recipe(name="test", description="A test.", turns=turns, **more)


def answer_row(key: str, *answers: str | None, question: str = "What?", **more: Any) -> dict:
    """An answer row with one turn for each answer; a null answer makes it one in error."""
    ok = None not in answers
    turns = [
        {
            "question": question if n == 0 else f"And {n}?",
            "answer": answer,
            "finish_reason": "stop",
            "answer_tokens": 5,
            "mean_logprob": -0.5,
        }
        for n, answer in enumerate(answers)
    ]
    return {
        "id": f"00000/{key}",
        "unit": "00000",
        "key": key,
        "num_images": 1,
        "image_sha256": "0" * 64,
        "turns": turns if ok else None,
        "answer": answers[-1] if ok else None,
        "status": "ok" if ok else "error",
        "error_code": None if ok else "image_unreadable",
    } | more


def verdicts(filters: Filters, *rows: dict) -> list[str | None]:
    return [verdict.reason or verdict.status for _, verdict in judge(rows, filters)]


def with_turn(key: str, answer: str, **change: Any) -> dict:
    row = answer_row(key, answer)
    row["turns"][0] |= change
    return row


# Recipes


def test_the_package_brings_llava_instruct_s_three_kinds() -> None:
    assert recipe_names() == ["conversation", "detail", "reasoning"]


@pytest.mark.parametrize("name", ["conversation", "detail", "reasoning"])
def test_a_packaged_recipe_loads_and_draws(name: str) -> None:
    found = load_recipe(name)
    assert found.name == name
    assert len(draw(found, 0, "00000/1")) == found.num_turns
    assert found.dialogue == (name == "conversation")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(2, 6), min_size=1, max_size=3), st.integers(0, 5), st.text())
def test_a_draw_is_the_same_each_time_and_from_its_pool(
    sizes: list[int], seed: int, id: str
) -> None:
    pools = [[f"{n}-{i}" for i in range(size)] for n, size in enumerate(sizes)]
    drawn = draw(recipe(*((2, pool) for pool in pools)), seed, id)
    assert drawn == draw(recipe(*((2, pool[::-1]) for pool in pools)), seed, id)
    assert len(set(drawn)) == len(drawn) == 2 * len(pools)
    for n, pool in enumerate(pools):
        assert set(drawn[2 * n : 2 * n + 2]) <= set(pool)


def test_a_draw_is_what_it_was_in_earlier_versions() -> None:
    made = recipe((2, ["red?", "green?", "blue?", "black?"]))
    assert draw(made, 0, "00000/000000042") == ("blue?", "red?")


def test_pools_that_share_prompts_ask_none_twice() -> None:
    made = recipe((1, ["a", "b"]), (1, ["a", "b"]))
    assert all(set(draw(made, 0, f"{i}")) == {"a", "b"} for i in range(20))


def test_draws_differ_by_image_and_by_seed_and_use_every_prompt() -> None:
    made = recipe((1, ["a", "b", "c", "d"]))
    by_image = Counter(draw(made, 0, f"00000/{i}")[0] for i in range(1000))
    assert set(by_image) == {"a", "b", "c", "d"}
    assert min(by_image.values()) > 150
    assert any(draw(made, 0, f"{i}") != draw(made, 1, f"{i}") for i in range(10))


def test_a_prompt_more_changes_only_the_draws_that_it_wins() -> None:
    before, after = recipe((1, ["a", "b", "c"])), recipe((1, ["a", "b", "c", "d"]))
    for i in range(100):
        drawn = draw(after, 0, f"{i}")
        assert drawn == ("d",) or drawn == draw(before, 0, f"{i}")


def write_recipe(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


MINE = "name: mine\ndescription: Mine.\nturns:\n- prompts: ['What is {caption}?']\n"


def test_a_recipe_of_one_s_own_is_read_from_its_file(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, MINE + "temperature: 1\nsamples: 3\nfilters: {max_words: 9}\n")
    found = load_recipe(path)
    assert found.prompts == ["What is {caption}?"]
    assert (found.samples, found.temperature, found.filters.max_words) == (3, 1, 9)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("conversation", "e8957d29e2d2a02c"),
        ("detail", "537b714c1eeb3037"),
        ("reasoning", "1700cc65053975bf"),
    ],
)
def test_a_packaged_recipe_s_repr_is_the_one_that_version_0_1_wrote_into_folders(
    name: str, digest: str
) -> None:
    # Folders of that version hold it among their settings: a class or field renamed, or moved to
    # another place in the order, would refuse to go on in every one of them.
    assert hashlib.sha256(repr(load_recipe(name)).encode()).hexdigest()[:16] == digest


def test_a_recipe_s_repr_is_the_one_that_version_0_1_wrote(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, MINE + "temperature: 1\nsamples: 3\nfilters: {max_words: 9}\n")
    assert repr(load_recipe(path)) == (
        "Recipe(name='mine', description='Mine.', turns=(Pool(prompts=('What is {caption}?',), "
        "draw=1),), system=None, samples=3, temperature=1, top_p=1.0, max_new_tokens=256, "
        "filters=Filters(min_words=1, max_words=9, max_repetition=None, min_mean_logprob=None, "
        "max_similarity=None, refusals=True, unfinished=True))"
    )


def test_a_recipe_as_json_says_all_of_it_with_its_defaults(tmp_path: Path) -> None:
    found = load_recipe(write_recipe(tmp_path, MINE + "filters: {max_repetition: 0.3}\n")).as_json()
    assert found == {
        "name": "mine",
        "description": "Mine.",
        "turns": [{"prompts": ["What is {caption}?"], "draw": 1}],
        "system": None,
        "samples": 1,
        "temperature": 0,
        "top_p": 1,
        "max_new_tokens": 256,
        "filters": {
            "min_words": 1,
            "max_words": None,
            "max_repetition": 0.3,
            "min_mean_logprob": None,
            "max_similarity": None,
            "refusals": True,
            "unfinished": True,
        },
    }
    assert json.loads(json.dumps(found)) == found


def test_two_files_that_say_the_same_are_one_recipe_as_json(tmp_path: Path) -> None:
    one = load_recipe(write_recipe(tmp_path, MINE + "temperature: 1\ntop_p: 1\nsamples: 3\n"))
    other = "# The same.\nsamples: 3\ntop_p: 1.0\ntemperature: 1.0\nfilters: {}\n" + MINE
    two = load_recipe(write_recipe(tmp_path, other))
    assert json.dumps(one.as_json()) == json.dumps(two.as_json())
    changed = load_recipe(write_recipe(tmp_path, other + "max_new_tokens: 257\n"))
    assert changed.as_json() != one.as_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE + "tempreature: 1\n", "unknown key 'tempreature'; give one of name"),
        (MINE + "samples: many\n", "samples 'many': expected int"),
        (MINE + "samples: true\n", "samples True: expected int"),
        (MINE + "samples: 2\n", "samples 2 need a temperature over 0"),
        (MINE + "filters: {max_wrods: 1}\n", "filters: unknown key 'max_wrods'"),
        (MINE + "filters: {max_words: '9'}\n", "max_words '9': expected int"),
        (MINE + "filters: {max_similarity: 2}\n", "max_similarity 2: give a share from 0 to 1"),
        (MINE + "filters: {min_words: 5, max_words: 3}\n", "give 0 <= min_words <= max_words"),
        ("name: mine\ndescription: Mine.\n", "`turns` must be a list"),
        (MINE.replace("name: mine", "name: ''"), "`name` must be a text"),
        (MINE + "- {prompts: [x], draw: 2}\n", "turn 2: draw 2 of 1 prompts"),
        (MINE + "- {prompts: []}\n", "turn 2: `prompts` must be a list of texts"),
        (MINE + "- {prompts: ['What is {caption}?']}\n", "a prompt stands in it twice"),
        (MINE + "- {prompts: [x]}\nsamples: 2\ntemperature: 1\n", "a dialogue has one sample"),
        ("[1", "not YAML"),
        ("just text", "expected a mapping"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.yaml") as caught:
        load_recipe(write_recipe(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["conversations", "none.yaml"])
def test_a_recipe_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--recipe {name}: (give one of|no such file)"):
        load_recipe(name)


# Filters


def test_a_good_answer_is_kept_and_a_row_in_error_stays_one() -> None:
    assert verdicts(Filters(), answer_row("1", LONG), answer_row("2", None)) == [
        "kept",
        "image_unreadable",
    ]


@pytest.mark.parametrize(
    ("filters", "row", "reason"),
    [
        (Filters(), with_turn("1", " .. "), "too_short"),
        (Filters(min_words=3), with_turn("1", "A dog."), "too_short"),
        (Filters(max_words=3), with_turn("1", LONG), "too_long"),
        (Filters(), with_turn("1", LONG, finish_reason="length"), "unfinished"),
        (Filters(unfinished=False), with_turn("1", LONG, finish_reason="length"), "kept"),
        (Filters(max_repetition=0.3), with_turn("1", "It is red. " * 4), "repetition"),
        (Filters(max_repetition=0.3), with_turn("1", LONG), "kept"),
        (Filters(min_mean_logprob=-1.0), with_turn("1", LONG, mean_logprob=-1.5), "low_logprob"),
        (Filters(min_mean_logprob=-1.0), with_turn("1", LONG, mean_logprob=None), "low_logprob"),
        (
            Filters(min_mean_logprob=-1.0),
            with_turn("1", LONG, mean_logprob=float("nan")),
            "low_logprob",
        ),
        (Filters(), with_turn("1", "I'm sorry, but I cannot see it."), "refusal"),
        (Filters(refusals=False), with_turn("1", "I'm sorry, I cannot see it."), "kept"),
    ],
)
def test_each_filter_rejects_what_it_is_for(filters: Filters, row: dict, reason: str) -> None:
    assert verdicts(filters, row) == [reason]


def test_one_bad_turn_rejects_the_dialogue() -> None:
    assert verdicts(Filters(), answer_row("1", LONG, "As an AI language model, I cannot.")) == [
        "refusal"
    ]


def test_of_near_duplicates_about_one_image_the_first_good_one_is_kept() -> None:
    almost = LONG.replace("door", "window")
    filters = Filters(max_similarity=0.6, max_words=16)
    rows = [
        answer_row("1", LONG + " And more words than sixteen."),
        answer_row("1", LONG),
        answer_row("1", almost),
        answer_row("1", LONG, question="Something else?"),
        answer_row("1", "A cat sits on a red chair."),
        answer_row("2", LONG),
    ]
    assert verdicts(filters, *rows) == [
        "too_long",
        "kept",
        "near_duplicate",
        "kept",
        "kept",
        "kept",
    ]
    assert verdicts(Filters(), *rows[1:3]) == ["kept", "kept"]


@settings(deadline=None)
@given(st.text(), st.text())
def test_measures_are_shares_and_similarity_is_mutual(one: str, other: str) -> None:
    assert 0 <= repetition(one) <= 1
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, other) == similarity(other, one)
    assert similarity(one, one) == 1


def test_repetition_counts_sequences_and_sentences() -> None:
    assert repetition(LONG) == 0
    assert repetition("") == 0
    assert repetition("Red. Red! red?") == pytest.approx(2 / 3)
    assert repetition("so it goes on " * 10) > 0.8


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I am afraid this is not possible.",
        "Sorry, no.",
        "Unfortunately, I am unable to view images.",
        "I cannot see the image you refer to.",
        "I don't have access to the picture.",
        "As an AI language model, I have no eyes.",
        "Please provide the image so that I can describe it.",
        "The image is not visible.",
    ],
)
def test_refusals_are_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        "The man looks sorry for what he did.",
        "No dog can be seen.",
        "As an example of modern art, the picture shows a cube.",
        "The sign says: please provide your name.",
        "",
    ],
)
def test_plain_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_verdicts_are_counted_by_reason() -> None:
    kept, short = Verdict("kept"), Verdict("rejected", "too_short")
    bad = Verdict("error", "bad_prompt")
    assert count([kept, short, kept, bad]) == {
        "error:bad_prompt": 1,
        "kept": 2,
        "rejected:too_short": 1,
    }


# Instruction tables


def test_a_conversation_has_one_image_mark_in_its_first_turn() -> None:
    turns = [
        {"question": "<image>\nWhat?", "answer": "A dog."},
        {"question": "Where, in <image>?", "answer": "There."},
    ]
    assert conversation(turns) == [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Where, in ?"},
        {"from": "gpt", "value": "There."},
    ]


def test_every_answer_row_comes_out_once_rejects_kept_and_counted(tmp_path: Path) -> None:
    schema = load_schema("answers").with_metadata({"llava_batch.model": "demo"})
    tables = {
        "a/00000": [answer_row("1", LONG), answer_row("2", None), answer_row("3", "I'm sorry.")],
        "00001": [answer_row("4", "Two.", "Words.")],
    }
    for name, rows in tables.items():
        path = tmp_path / "answers" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    out = tmp_path / "instructions"
    counts = write_instructions(str(tmp_path / "answers"), str(out), load_recipe("conversation"))
    assert counts == {"error:image_unreadable": 1, "kept": 2, "rejected:refusal": 1}
    assert json.loads((out / "_counts.json").read_text())["rows"] == 4
    table = pq.read_table(out / "a" / "00000.parquet")
    assert table.schema.equals(load_schema("instructions"))
    assert table.schema.metadata[b"llava_batch.model"] == b"demo"
    rows = table.to_pylist()
    assert [row["status"] for row in rows] == ["kept", "error", "rejected"]
    assert rows[2]["conversations"][1] == {"from": "gpt", "value": "I'm sorry."}
    assert rows[1]["conversations"] is None
    assert len(pq.read_table(out / "00001.parquet").to_pylist()[0]["conversations"]) == 4
