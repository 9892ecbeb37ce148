"""Answers of a JSON schema: what the demo model says under one, and which schemas are refused."""

import asyncio
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_batch.demo import model_path
from llava_batch.errors import UsageError
from llava_batch.job import Job

pytest.importorskip("llguidance", reason="needs the json-schema extra")
torch = pytest.importorskip("torch")

from transformers import AutoTokenizer  # noqa: E402

from llava_batch.driver.same_run import answer_settings  # noqa: E402
from llava_batch.driver.settle import settle  # noqa: E402
from llava_batch.engine import Completion, Engine, Request  # noqa: E402
from llava_batch.generate.actor import Generate  # noqa: E402
from llava_batch.generate.json_schema import Constraint, is_cut_off, read_schema  # noqa: E402
from llava_batch.prepare.actor import Prepare  # noqa: E402
from llava_batch.read.columns import image_schema  # noqa: E402
from tests.shards import picture  # noqa: E402
from tests.without_ray import LocalState, go_without_ray  # noqa: E402

YES_NO = {"enum": ["yes", "no"]}
THING: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "triangle"]},
        "colour": {"enum": ["red", "green", "blue", "yellow"]},
        "there": {"type": "boolean"},
    },
    "required": ["shape", "colour", "there"],
    "additionalProperties": False,
}
END = frozenset({1})


@functools.cache
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


@functools.cache
def engine() -> Engine:
    return Engine.load(model_path(), slots=3, max_tokens=384, dtype="float32")


def constraint(schema: dict) -> Constraint:
    text = read_schema(json.dumps(schema))
    return Constraint(text, tokenizer(), vocab_size=512, end_tokens=END)


def ask(number: int, question: str = "Is there a red square?") -> dict:
    """The parts of a request about a picture of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (1, 3, 112, 112), dtype=np.uint8)
    prompt = f"USER: {'<image>' * 64}\n{question} ASSISTANT:"
    return {"id": str(number), "pixels": pixels, "prompt_ids": tokenizer()(prompt).input_ids}


def said(completion: Completion) -> str:
    return tokenizer().decode(completion.token_ids, skip_special_tokens=True)


def is_thing(value: object) -> bool:
    fields = THING["properties"]
    return (
        isinstance(value, dict)
        and list(value) == list(fields)
        and value["shape"] in fields["shape"]["enum"]
        and value["colour"] in fields["colour"]["enum"]
        and isinstance(value["there"], bool)
    )


def test_every_answer_is_json_of_the_schema() -> None:
    only = constraint(YES_NO)
    requests = [Request(**ask(n), logits_processor=only.processor()) for n in range(4)]
    done = list(engine().generate(requests))
    assert {c.finish_reason for c in done} == {"stop"}
    assert all(said(c) in ('"yes"', '"no"') for c in done)
    assert all(c.mean_logprob is not None and np.isfinite(c.mean_logprob) for c in done)


def test_samples_and_turns_of_one_request_each_satisfy_the_schema() -> None:
    things = constraint(THING)
    further = tokenizer()("</s>USER: And now? ASSISTANT:", add_special_tokens=False).input_ids
    request = Request(
        **ask(5),
        turns=(further,),
        num_samples=3,
        temperature=3.0,
        max_new_tokens=100,
        logits_processor=things.processor(),
    )
    done = list(engine().generate([request]))
    assert len(done) == 6 and {c.finish_reason for c in done} == {"stop"}
    assert all(is_thing(json.loads(said(c))) for c in done), [said(c) for c in done]
    assert len({said(c) for c in done}) > 1, "samples that are all alike would not show a mix-up"


def test_an_answer_cut_short_says_so() -> None:
    walk = constraint(THING).processor()
    (done,) = engine().generate([Request(**ask(1), max_new_tokens=4, logits_processor=walk)])
    assert (
        done.finish_reason == "length"
        and said(done).startswith("{")
        and not said(done).endswith("}")
    )


def test_rows_without_a_schema_beside_one_are_as_alone() -> None:
    (alone,) = engine().generate([Request(**ask(2))])
    walk = constraint(YES_NO).processor()
    mixed = [Request(**ask(3), logits_processor=walk), Request(**ask(2))]
    beside = {c.id: c for c in engine().generate(mixed)}
    assert beside["2"].token_ids == alone.token_ids


def test_a_walk_goes_back_to_where_two_answers_part() -> None:
    walk = constraint(YES_NO).processor()
    logits = torch.zeros(512)

    def allowed(text: str) -> list[str]:
        ids = tokenizer()(text, add_special_tokens=False).input_ids if text else []
        kept = torch.isfinite(walk(ids, logits)).nonzero().flatten().tolist()
        return tokenizer().convert_ids_to_tokens(kept)

    assert allowed('"yes"') == ["</s>"]
    assert '"' in allowed("") and "</s>" not in allowed("")
    assert allowed('"no"') == ["</s>"]
    assert walk.problem is None


def test_a_grammar_that_gives_up_ends_the_answer_and_says_why() -> None:
    walk = constraint(YES_NO).processor()
    scores = walk(tokenizer()("{", add_special_tokens=False).input_ids, torch.zeros(512))
    assert torch.isfinite(scores).nonzero().flatten().tolist() == [1]
    assert walk.problem and "\n" not in walk.problem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "is no JSON object"),
        ("{", "is not JSON"),
        ('{"type": "foo"}', "cannot be enforced (Invalid type: foo)"),
        ('{"not": {"type": "string"}}', 'cannot be enforced (Unimplemented keys: ["not"])'),
        ('{"enum": []}', "cannot be enforced"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(tmp_path: Path, text, told: str) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as refused:
        read_schema(str(path))
    assert str(refused.value).startswith(f"--json-schema {path}: {told}")
    assert "\n" not in str(refused.value)


def test_a_schema_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_schema(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "other",
    [{"choices": ("a", "b"), "question": ("Which?",)}, {"stop": ("x",)}, {"min_new_tokens": 2}],
)
def test_what_would_break_the_json_is_refused_beside_a_schema(other: dict) -> None:
    with pytest.raises(UsageError, match="--json-schema and --"):
        Job(json_schema="s.json", **other)


def test_the_fingerprint_holds_the_schema_and_not_its_path(tmp_path: Path) -> None:
    from llava_batch.checkpoint import Checkpoint

    demo = Checkpoint.find(Job())
    for name, schema in (("a", YES_NO), ("b", YES_NO), ("c", THING)):
        (tmp_path / name).write_text(json.dumps(schema, indent=ord(name) % 3))
    a, b, c = (Job(json_schema=str(tmp_path / name)) for name in "abc")
    of = [answer_settings(settle(job), demo)["json_schema"] for job in (a, b, c)]
    assert of[0] == of[1] != of[2]
    ready = settle(a)
    assert json.loads(ready.job.json_schema or "") == YES_NO
    assert settle(ready.job) == ready
    assert answer_settings(ready, demo)["json_schema"] == of[0]


@pytest.mark.usefixtures("local_ray")
def test_a_job_answers_by_the_schema(demo_shards, tmp_path: Path) -> None:
    from llava_batch.pipeline import run

    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(THING))
    job = Job(
        input=(str(demo_shards[1]),),
        output=str(tmp_path / "out"),
        json_schema=str(schema),
        limit=6,
        max_new_tokens=100,
        quiet=True,
    )
    run(job)
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    assert len(rows) == 6 and {row["finish_reason"] for row in rows} == {"stop"}
    assert all(is_thing(json.loads(row["answer"])) for row in rows), [r["answer"] for r in rows]


def answered(monkeypatch, **how: Any) -> list[dict]:
    """The answer rows of one picture, asked under the schema of a thing."""
    go_without_ray(monkeypatch)
    job = settle(Job(json_schema=json.dumps(THING), slots=2, dtype="float32", **how)).job
    image = {
        "unit": "u",
        "ordinal": 0,
        "end": False,
        "key": "k",
        "mark": "",
        "images": [picture(0)],
    }
    table = pa.Table.from_pylist([image], schema=image_schema(pa.schema([])))
    (prepared,) = Prepare(job, LocalState()).tables(table)
    rows: list[dict] = asyncio.run(Generate(job, LocalState(), 1).table(prepared)).to_pylist()
    return rows


@pytest.mark.parametrize(
    "how",
    [
        {"max_new_tokens": 4},
        {"max_new_tokens": 4, "num_samples": 3, "temperature": 1.0},
        {"max_new_tokens": 4, "dialogue": True, "question": ("What is it?", "And now?")},
    ],
    ids=["one", "samples", "dialogue"],
)
def test_an_answer_that_was_cut_off_is_a_row_in_error_that_says_what_came(monkeypatch, how) -> None:
    # It was `ok`, and its answer no JSON.
    rows = answered(monkeypatch, **how)
    assert len(rows) == how.get("num_samples", 1)
    for row in rows:
        assert (row["status"], row["error_code"]) == ("error", "answer_cut_off")
        assert row["answer"] is None
        why, _, said = row["error_message"].partition("; it said: ")
        assert why == "its JSON has no end after --max-new-tokens 4, give more"
        assert said.startswith("{") and not said.endswith("}")


def test_an_answer_that_had_room_is_ok_as_before(monkeypatch) -> None:
    (row,) = answered(monkeypatch, max_new_tokens=100)
    assert row["status"] == "ok" and is_thing(json.loads(row["answer"]))


@given(st.recursive(
    st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
))  # fmt: skip
def test_json_is_cut_off_wherever_it_lacks_its_end(value: object) -> None:
    whole = json.dumps(value)
    assert not is_cut_off(whole)
    assert all(is_cut_off(whole[:end]) for end in range(len(whole)))


def test_a_number_that_the_limit_ended_might_have_gone_on() -> None:
    assert is_cut_off("12") and is_cut_off("-1.5") and not is_cut_off("true")
