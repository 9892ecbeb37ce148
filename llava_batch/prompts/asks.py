"""What is asked of one image: the job's prompt, its questions, a column's, or a file's, as dialogues.

An `Ask` is one answer row to be (before samples): its question id and its turns. Pure text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.prompts.guards import Guards
from llava_batch.prompts.recipe import Recipe, draw
from llava_batch.prompts.templates import BadPrompt, fill, template_columns


@dataclass(frozen=True)
class Ask:
    """One dialogue (of one turn, mostly) about one image; `why_not` says why it cannot be asked."""

    question_id: str | None
    turns: tuple[str, ...]
    why_not: str | None = None


Lookup = Callable[[str, str, str | None], list[tuple[str, str]]]
"""(unit, key, SHA-256 of the image) -> [(question id, text)], from a questions file."""


def prompt_columns(job: Job, recipe: Recipe | None = None) -> list[str]:
    """The input columns that this job's prompts need.

    Raises:
        UsageError: braces in a prompt that cannot be read.
    """
    named = [
        name
        for flag, text in _templates(job, recipe)
        for name in template_columns(text, flag)
    ]  # fmt: skip
    own = [job.question_column] if job.question_column else []
    return list(dict.fromkeys([*own, *named]))


def asks_of(
    job: Job,
    unit: str,
    key: str,
    columns: Mapping[str, Any],
    guards: Guards,
    lookup: Lookup | None = None,
    sha256: str | None = None,
    recipe: Recipe | None = None,
) -> list[Ask]:
    """What to ask of this image; `guards` fence what users and columns bring."""
    if job.questions:
        if lookup is None:
            raise UsageError("--questions: no file of questions was loaded")
        asks = [_of_file(*question, guards) for question in lookup(unit, key, sha256)]
    elif recipe is not None:
        drawn = draw(recipe, job.seed, f"{unit}/{key}")
        return [_dialogue([_filled(None, prompt, columns, guards) for prompt in drawn])]
    elif job.question_column:
        asks = _from_column(job.question_column, columns.get(job.question_column), guards)
    elif job.question:
        ids = [str(i) if len(job.question) > 1 else None for i in range(len(job.question))]
        asks = [
            _filled(i, q, columns, guards) for i, q in zip(ids, job.question, strict=True)
        ]  # fmt: skip
    else:
        asks = [_filled(None, job.prompt, columns, guards)]
    asks = [_with_suffix(a, guards.text(job.suffix)) for a in asks]
    return [_dialogue(asks)] if job.dialogue and asks else asks


def shortest_asks(job: Job, recipe: Recipe | None, guards: Guards) -> list[tuple[str, ...]]:
    """What is asked at least of an image whose columns are empty: each ask's turns."""
    if recipe is not None:
        drawn = [min(pool.prompts, key=len) for pool in recipe.turns for _ in range(pool.draw)]
    elif job.questions or job.question_column:
        return [(guards.text(job.suffix),)]
    else:
        drawn = [text for _, text in _templates(job, None)]
    empty = dict.fromkeys(prompt_columns(job, recipe), "")
    asks = [
        _with_suffix(_filled(None, text, empty, guards), guards.text(job.suffix)) for text in drawn
    ]
    asks = [_dialogue(asks)] if job.dialogue or recipe is not None else asks
    return [ask.turns for ask in asks]


def _templates(job: Job, recipe: Recipe | None) -> list[tuple[str, str]]:
    if recipe is not None:
        return [("--recipe", prompt) for prompt in recipe.prompts]
    if job.questions or job.question_column:
        return []
    if job.question:
        return [("--question", q) for q in job.question]
    return [("--prompt", job.prompt)]


def _from_column(name: str, value: Any, guards: Guards) -> list[Ask]:
    """A column's question, or each of its list, numbered by its place there."""
    if isinstance(value, list) and value:
        return [_of_value(str(i), name, item, guards) for i, item in enumerate(value)]
    return [_of_value(None, name, value, guards)]


def _of_value(question_id: str | None, name: str, value: Any, guards: Guards) -> Ask:
    if value in (None, "", []):
        return Ask(question_id, (), f"column {name} is null or empty")
    if not isinstance(value, str):
        return Ask(question_id, (), f"column {name} holds {value!r:.60}, which is not text")
    return Ask(question_id, (guards.text(value),))


def _of_file(question_id: str, text: str, guards: Guards) -> Ask:
    if not text.strip():
        return Ask(question_id, (), f"question {question_id} of the file is empty")
    return Ask(question_id, (guards.text(text),))


def _filled(
    question_id: str | None, template: str, columns: Mapping[str, Any], guards: Guards
) -> Ask:
    try:
        return Ask(question_id, (fill(template, columns, guards),))
    except BadPrompt as error:
        return Ask(question_id, (), str(error))


def _with_suffix(ask: Ask, suffix: str) -> Ask:
    """The suffix behind every turn, unless it stands there already, as in LLaVA's own files."""
    turns = tuple(t if t.endswith(suffix) else t + suffix for t in ask.turns)
    return Ask(ask.question_id, turns, ask.why_not)


def _dialogue(asks: list[Ask]) -> Ask:
    why_not = next((a.why_not for a in asks if a.why_not), None)  # one bad turn spoils the rest
    return Ask(None, tuple(t for a in asks for t in a.turns), why_not)
