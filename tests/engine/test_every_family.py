"""All that may be asked of the engine, of every family: in flight with the others as alone, and as transformers.

Forked questions, dialogues, samples, choices, penalties and answers of a JSON schema, over images of any size.
"""

import atexit
import json
import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from any_family import Reference, picture, prepared
from test_same_bits import native
from tiny_llava import by_key
from transformers import LogitsProcessor

from llava_batch.checkpoint import Checkpoint
from llava_batch.engine import Completion, Engine, Request
from llava_batch.generate.json_schema import Constraint
from tests.published import publish
from tests.without_ray import go_without_ray

FAMILIES = ["next mistral", "onevision", "vip", "pixtral", "llava siglip", "next siglip", "llava"]
WAYS: dict[str, dict[str, Any]] = {
    "native": {"dtype": "float32", "attention": "auto"},
    "packed": {"dtype": "float32", "attention": "sdpa"},
    "bfloat16": {"dtype": "bfloat16", "attention": "native"},
}
SCHEMA = {
    "type": "object",
    "properties": {"is": {"enum": ["a cat", "a circle", "red"]}, "many": {"enum": [1, 2, 3]}},
    "required": ["is", "many"],
    "additionalProperties": False,
}
CHOICES = ("Yes", "No", "three circles", "a cat")


@dataclass(frozen=True)
class Asked:
    """A request, and the same prompt at transformers."""

    request: Request
    reference: Reference


@cache
def constraint(folder: Path) -> Constraint:
    found = Checkpoint(folder=str(folder), name="test")
    return Constraint(
        json.dumps(SCHEMA), found.tokenizer, vocab_size=len(found.tokenizer),
        end_tokens=frozenset([2]),
    )  # fmt: skip


def all_sorts(folder: Path) -> dict[str, Asked]:
    """Requests of every sort about three images."""
    images = picture(90, 40), picture(33, 70), picture(300, 200)
    asked: dict[str, Asked] = {}

    def ask(name: str, number: int, settings: dict[str, Any], **change: Any) -> None:
        request, told = prepared(folder, images[number], **settings)
        reference = Reference(folder, told, images[number])
        asked[name] = Asked(replace(request, id=name, **change), reference)

    for number, question in enumerate(("Who?", "What is red?", "How many circles are there?")):
        ask(f"fork {number}", 0, {"prompt": f"Look at what is in the picture. {question}"})
    turns = ("What is in the picture?", "Why?", "Is there a cat?")
    for number in range(2):
        ask(f"dialogue {number}", number, {"question": turns, "dialogue": True})
    ask("penalised", 1, {}, repetition_penalty=1.4, min_new_tokens=3)
    ask("samples", 2, {}, num_samples=3, temperature=1.0, top_p=0.9, seed=3)
    ask("sampled dialogue", 2, {"question": turns[:2], "dialogue": True}, num_samples=2,
        temperature=1.0)  # fmt: skip
    tokenizer = Checkpoint(folder=str(folder), name="test").tokenizer
    choices = [(*tokenizer(c, add_special_tokens=False).input_ids, 2) for c in CHOICES]
    for number in range(2):
        ask(f"choices {number}", number, {}, choices=tuple(choices))
    only = constraint(folder)
    for number in range(2):
        ask(f"json {number}", number, {}, max_new_tokens=60, logits_processor=only.processor())
    ask("json samples", 0, {}, max_new_tokens=60, num_samples=2, temperature=1.0,
        logits_processor=only.processor())  # fmt: skip
    return asked


@cache
def made(family: str) -> tuple[Path, dict[str, Asked]]:
    """The family's checkpoint and the requests, made once."""
    folder = publish(family, Path(tempfile.mkdtemp(prefix="family")))
    atexit.register(shutil.rmtree, folder)
    with pytest.MonkeyPatch.context() as patch:
        go_without_ray(patch)
        return folder, all_sorts(folder)


@pytest.fixture(params=FAMILIES)
def family(request: Any) -> str:
    pytest.importorskip("llguidance", reason="needs the json-schema extra")
    return request.param


Key = tuple[str, int, int]


@cache
def answered(family: str, way: str) -> dict[Key, Completion]:
    """All of them in flight together, in any order."""
    folder, asked = made(family)
    engine = Engine.load(folder, device="cpu", slots=5, max_tokens=400, **WAYS[way])
    requests = [one.request for one in asked.values()]
    random.Random(7).shuffle(requests)
    found = by_key(list(engine.generate(requests)))
    assert engine.stats.tokens_reused > 0, "forks and samples share"
    assert {c.error for c in found.values()} == {None}
    return found


@pytest.mark.parametrize("way", WAYS)
def test_answers_in_flight_are_those_alone(family, way) -> None:
    folder, requests = made(family)
    if way == "bfloat16":
        native(torch.bfloat16)
    together = answered(family, way)
    engine = Engine.load(folder, device="cpu", slots=1, max_tokens=400, reuse=False, **WAYS[way])
    alone: dict[Key, Completion] = {}
    for one in requests.values():
        alone |= by_key(list(engine.generate([one.request])))
    assert told(together) == told(alone)
    for key, completion in together.items():
        for name in ("mean_logprob", "probability"):
            ours, theirs = getattr(completion, name), getattr(alone[key], name)
            if way == "bfloat16":
                assert ours == theirs, f"{name} of {key}: not the same bits"
            else:
                assert ours == pytest.approx(theirs, abs=1e-5)


def told(found: dict[Key, Completion]) -> dict[Key, Any]:
    return {key: (c.token_ids, c.finish_reason, c.choice) for key, c in found.items()}


class Walked(LogitsProcessor):
    """The constraint of a schema, as transformers' `generate` asks for it."""

    def __init__(self, folder: Path, prompt_len: int) -> None:
        self.walk, self.prompt_len = constraint(folder).processor(), prompt_len

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.walk(input_ids[0, self.prompt_len :].tolist(), scores[0])[None]


def test_greedy_answers_are_those_of_generate(family) -> None:
    folder, requests = made(family)
    found = answered(family, "native")
    for name, one in requests.items():
        request = one.request
        assert list(request.prompt_ids) == one.reference.ids
        if request.temperature or request.choices:
            continue
        options: dict[str, Any] = {"max_new_tokens": request.max_new_tokens}
        if request.logits_processor is not None:
            options["logits_processor"] = [Walked(folder, len(one.reference.ids))]
        if request.min_new_tokens:
            options["min_new_tokens"] = request.min_new_tokens
        further: list[int] = []
        for turn, text in enumerate([*request.turns, []]):
            answer = one.reference.answer(
                further, repetition_penalty=request.repetition_penalty, **options
            )
            assert found[name, turn, 0].token_ids == tuple(answer), f"turn {turn} of {name}"
            further += [*answer, *text]


def test_answers_of_a_schema_are_json_of_it(family) -> None:
    folder, _ = made(family)
    found = answered(family, "native")
    tokenizer = Checkpoint(folder=str(folder), name="test").tokenizer
    said = [
        json.loads(tokenizer.decode(completion.token_ids, clean_up_tokenization_spaces=False))
        for (name, _, _), completion in found.items()
        if name.startswith("json")
    ]
    assert len(said) == 4 and all(thing.keys() == {"is", "many"} for thing in said)


def test_scores_of_all_answers_are_those_of_transformers(family) -> None:
    _, requests = made(family)
    found = answered(family, "native")
    assert len({c.token_ids for (name, _, _), c in found.items() if name == "samples"}) > 1
    for name, one in requests.items():
        for sample in range(one.request.num_samples):
            further: list[int] = []
            for turn, text in enumerate([*one.request.turns, ()]):
                completion = found[name, turn, sample]
                further += completion.token_ids
                if completion.token_ids:
                    scores = one.reference.logprobs(further)[-len(completion.token_ids) :]
                    expected = pytest.approx(float(scores.mean()), abs=1e-4)
                    assert completion.mean_logprob == expected, f"turn {turn} of {name}"
                further += text


def test_choices_have_the_probabilities_of_transformers_logits(family) -> None:
    _, requests = made(family)
    found = answered(family, "native")
    for name in ("choices 0", "choices 1"):
        one, completion = requests[name], found[name, 0, 0]
        scores = [float(one.reference.logprobs(c).sum()) for c in one.request.choices]
        shares = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
        assert completion.choice == int(shares.argmax())
        assert completion.probability == pytest.approx(float(shares.max()), abs=1e-4)
        assert completion.mean_logprob == pytest.approx(
            max(scores) / len(completion.token_ids), abs=1e-4
        )
