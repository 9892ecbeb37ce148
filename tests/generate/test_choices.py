"""Choices are scored as the answers that the conversation's own format would hold."""

import asyncio
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import AddedToken

from llava_batch.checkpoint import Checkpoint
from llava_batch.demo import model_path
from llava_batch.engine import Completion, Request
from llava_batch.engine.stats import Stats
from llava_batch.errors import UsageError
from llava_batch.generate.actor import Generate
from llava_batch.job import Job
from llava_batch.prepare.actor import Prepare
from llava_batch.read.columns import image_schema
from tests.sentencepiece_like import sentencepiece_like
from tests.shards import picture
from tests.without_ray import LocalState, go_without_ray

LIKE_THE_HUBS = (
    "{% for m in messages %}{{ m.role | upper }}: {% for p in m.content if p.type == 'image' %}<image>\n"
    "{% endfor %}{% for p in m.content if p.type == 'text' %}{{ p.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
BLANK_BEFORE_THE_END = MISTRAL.replace("}}</s>", "}} </s>")
HASHES = (
    "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:{% else %}###{% endif %}"
)
ENDS_WITH_A_BLANK = HASHES.replace("### assistant:{%", "### assistant: {%")
THINKS_FIRST = CHATML.replace("assistant\n{% endif %}", "assistant\n<think></think>{% endif %}")
DROPS_ANSWERS = "Q: {{ messages[0].content }} A:"

FORMATS: dict[str, tuple[str | None, str, str, str]] = {
    "documented": (None, "llava-1.5", " ", "</s>"),
    "the hub's": (LIKE_THE_HUBS, "checkpoint", " ", ""),
    "chatml": (CHATML, "auto", "", "<|im_end|>"),
    "mistral": (MISTRAL, "auto", " ", "</s>"),
    "blank before the end": (BLANK_BEFORE_THE_END, "auto", " ", " </s>"),
    "hashes": (HASHES, "auto", " ", "\n###"),
    "thinks first": (THINKS_FIRST, "auto", "", "<|im_end|>"),
}
"""Template, --template, what stands before an answer, what closes it."""

CHOICES = ("yes", "no", "no way", "中文", "</s>")
TOKENIZERS = ["byte level", "legacy", "always", "first", "never"]


def checkpoint(folder: Path, kind: str, template: str | None, *, eos: bool = True) -> Checkpoint:
    """The demo's settings with another tokenizer and template."""
    demo = Path(model_path())
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    made = Checkpoint(folder=str(folder), name="test").tokenizer
    if kind != "byte level":
        made = sentencepiece_like(kind, image_is_special=True)
    marks = ["<|im_start|>", "<|im_end|>"]
    made.add_tokens([AddedToken(m, special=True, normalized=False) for m in marks])
    if not eos:
        made.eos_token = None
    made.chat_template = template
    made.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["image_token_id"] = made.convert_tokens_to_ids("<image>")
    (folder / "config.json").write_text(json.dumps(settings))
    return Checkpoint(folder=str(folder), name="test")


class Chooser:
    """An engine that takes the second choice of every request."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.asked: list[Request] = []
        self.llava = SimpleNamespace(vocab_size=10_000)
        self._done: list[Completion] = []

    @property
    def has_work(self) -> bool:
        return bool(self._done)

    def submit(self, request: Request) -> None:
        self.asked.append(request)
        chosen: dict[str, Any] = {"choice": 1, "token_ids": request.choices[1], "probability": 0.5}
        self._done.append(Completion(id=request.id, mean_logprob=-0.5, **chosen))

    def step(self, **_) -> list[Completion]:
        done, self._done = self._done, []
        return done


@pytest.fixture(autouse=True)
def _alone(monkeypatch) -> None:
    go_without_ray(monkeypatch)


def answered(monkeypatch, made: Checkpoint, **options: Any) -> tuple[dict, Request]:
    """One image's answer row, and what the engine was asked."""
    monkeypatch.setattr(Checkpoint, "find", lambda job: made)
    engine = Chooser()
    monkeypatch.setattr(Generate, "_load", lambda self: engine)
    job = Job(question=("Is it?",), choices=CHOICES, **options)
    image = {
        "unit": "u",
        "ordinal": 0,
        "end": False,
        "key": "k",
        "mark": "",
        "id_base": "u",
        "images": [picture(0)],
    }
    table = pa.Table.from_pylist([image], schema=image_schema(pa.schema([])))
    (prepared,) = Prepare(job, LocalState()).tables(table)
    (row,) = asyncio.run(Generate(job, LocalState(), 1).table(prepared)).to_pylist()
    return row, engine.asked[0]


def whole(made: Checkpoint, template: str, request: Request, text: str) -> list[int]:
    """The ids of the conversation with `text` behind its prompt, images as the request has them."""
    (prompt,) = made.renderer(template)(["<image>\nIs it?"], None)
    ids = made.encode(prompt + text, first=True)
    at, many = ids.index(made.image_token_id), request.prompt_ids.count(made.image_token_id)
    return [*ids[:at], *[made.image_token_id] * many, *ids[at + 1 :]]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", FORMATS)
def test_prompt_and_choice_have_the_ids_of_the_whole_conversation(
    tmp_path, monkeypatch, name, kind
) -> None:
    template, flag, lead, close = FORMATS[name]
    made = checkpoint(tmp_path, kind, template)
    row, request = answered(monkeypatch, made, template=flag)
    found = [[*request.prompt_ids, *choice] for choice in request.choices]
    expected = [
        whole(made, flag, request, lead + made.guards.value(text) + close) for text in CHOICES
    ]
    assert found == expected
    assert row["answer"] == "no"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_behind_a_prompt_that_ends_with_a_blank_a_choice_brings_none_of_its_own(
    tmp_path, monkeypatch, kind
) -> None:
    made = checkpoint(tmp_path, kind, ENDS_WITH_A_BLANK)
    _, request = answered(monkeypatch, made)
    text = made.tokenizer.decode(
        [*request.prompt_ids, *request.choices[1]], clean_up_tokenization_spaces=False
    )
    assert text.endswith("### assistant: no\n###")


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_that_is_chosen_counts_the_tokens_that_decoding_it_would(
    tmp_path, monkeypatch, name
) -> None:
    template, flag, lead, _ = FORMATS[name]
    made = checkpoint(tmp_path, "byte level", template)
    row, request = answered(monkeypatch, made, template=flag)
    decoded = len(whole(made, flag, request, lead + "no")) - len(request.prompt_ids)
    assert row["answer_tokens"] == row["turns"][0]["answer_tokens"] == decoded
    assert row["mean_logprob"] == pytest.approx(-0.6931, abs=1e-4)


def test_a_tokenizer_without_an_end_token_has_choices_too(tmp_path, monkeypatch) -> None:
    made = checkpoint(tmp_path, "byte level", CHATML, eos=False)
    _, request = answered(monkeypatch, made)
    end = made.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [choice[-1] for choice in request.choices] == [end] * len(CHOICES)


def test_a_template_that_drops_answers_is_refused_where_there_are_choices(tmp_path, monkeypatch):
    made = checkpoint(tmp_path, "byte level", DROPS_ANSWERS)
    with pytest.raises(UsageError, match=r"--choices: how an answer stands .* is not known"):
        answered(monkeypatch, made)
