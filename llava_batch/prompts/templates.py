"""Conversation templates: turns → the exact prompt text, cut at the answers.

A conversation of k turns becomes k segments: the text up to the first answer, and the text between
each answer and the next. Segment 0 goes in with the images, segment i right behind answer i - 1, so
a dialogue carried on in its slot is the same conversation as one given at once.

`<image>` in a question marks an image's place. Prompts that name columns in braces are filled here
too, what users and their data bring guarded (`guards.py`). Knows templates and text; no model, no
token ids.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_batch.errors import LlavaBatchError, UsageError, counted
from llava_batch.prompts.guards import CLOSE, IMAGE, OPEN, Guards

Render = Callable[[Sequence[str], str | None], list[str]]
"""(questions, system text) -> segments, one for each question."""
Apply = Callable[[list[dict[str, Any]]], str]
"""A chat template: messages, as transformers has them -> their text."""


class BadPrompt(LlavaBatchError):
    """This row's prompt cannot be made; the row's error is `bad_prompt`."""


def llava_15(questions: Sequence[str], system: str | None) -> list[str]:
    """LLaVA-1.5's documented format; `</s>` closes each earlier answer.

    Source: the LLaVA-1.5 model documentation and `conv_vicuna_v1` of the original repository.
    """
    opening = "" if not system else system if system[-1].isspace() else system + " "
    first, *rest = (f"USER: {question} ASSISTANT:" for question in questions)
    return [opening + first, *("</s>" + text for text in rest)]


def from_chat_template(apply: Apply) -> Render:
    """A renderer from a checkpoint's chat template; `apply(messages)` gives the whole text, which asks.

    The answers are stood in for by markers, and the text is cut there. Templates that take a list of
    typed parts and templates that take plain strings are told apart by trying.

    Raises:
        UsageError: the template drops a question or an answer, so no conversation can be made.
    """

    def render(questions: Sequence[str], system: str | None) -> list[str]:
        return _cut(apply, questions, system, num_answers=len(questions) - 1)

    return render


@dataclass(frozen=True)
class Frame:
    """What stands around an answer: between its prompt and it, and behind it, up to the next question."""

    lead: str
    close: str


LLAVA_15_FRAME = Frame(lead=" ", close="</s>")


def chat_template_frame(render: Render, apply: Apply, system: str | None) -> Frame:
    """A chat template's frame; `apply(messages)` gives the text of a conversation that has ended.

    Where the template asks for an answer by other words than it puts in front of one that is there (some
    models think aloud first), the answer stands right behind what asks.

    Raises:
        UsageError: the template drops the answer.
    """
    question = f"{IMAGE}\nquestion"
    (prompt,) = render([question], system)
    before, close = _cut(apply, [question], system, num_answers=1)
    return Frame(lead=before[len(prompt) :] if before.startswith(prompt) else "", close=close)


def _cut(
    apply: Apply, questions: Sequence[str], system: str | None, *, num_answers: int
) -> list[str]:
    """The text of a conversation, cut at the answers."""
    for as_parts in (True, False):
        try:
            text = apply(_messages(questions, system, as_parts, num_answers))
        except Exception as error:  # noqa: BLE001 a template is a program: it raises anything
            why_not = f"{type(error).__name__}: {error}"
            continue
        pieces = re.split(f"{OPEN}answer[0-9]+{CLOSE}", text)
        sound = len(pieces) == 1 + num_answers and all(
            _without_marks(q) in s for q, s in zip(questions, pieces, strict=False)
        )
        if sound and text.count(IMAGE) == sum(q.count(IMAGE) for q in questions):
            return pieces
        why_not = "a question, an answer or an image is lost in it"
    raise UsageError(f"--template: the chat template cannot be used ({why_not})")


def _messages(
    questions: Sequence[str], system: str | None, as_parts: bool, num_answers: int
) -> list[dict[str, Any]]:
    def content(text: str) -> Any:
        if not as_parts:
            return text
        parts: list[dict[str, str]] = []
        for i, piece in enumerate(text.split(IMAGE)):
            parts += [{"type": "image"}] * (i > 0)
            piece = piece.removeprefix("\n") if i > 0 else piece
            parts += [{"type": "text", "text": piece}] * bool(piece)
        return parts

    messages = [{"role": "system", "content": content(system)}] if system else []
    for i, question in enumerate(questions):
        messages.append({"role": "user", "content": content(question)})
        if i < num_answers:
            answer = f"{OPEN}answer{i}{CLOSE}"
            messages.append({"role": "assistant", "content": content(answer)})
    return messages


def _without_marks(question: str) -> str:
    return question.rpartition(IMAGE)[2].strip()


def template_columns(template: str, flag: str) -> list[str]:
    """The columns that a prompt names in braces, in order.

    Raises:
        UsageError: braces that do not pair, a conversion or a format, an empty or numbered field.
    """
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"{flag} {template!r}: {error}; write {{{{ and }}}} for braces") from None
    names = []
    for _, name, spec, conversion in fields:
        if name is None:
            continue
        if not name or name.isdigit() or spec or conversion:
            raise UsageError(
                f"{flag} {template!r}: only {{column}} can be put in; write {{{{ and }}}} for braces"
            )
        names.append(name)
    return list(dict.fromkeys(names))


def fill(template: str, columns: Mapping[str, Any], guards: Guards) -> str:
    """The template with its columns put in, text and values guarded each in its way.

    Raises:
        BadPrompt: a column that is null in this row.
    """
    parts = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(guards.text(literal))
        if name is None:
            continue
        value = columns.get(name)
        if value is None:
            raise BadPrompt(f"column {name} is null")
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(guards.value(text))
    return "".join(parts)


def place_images(questions: Sequence[str], num_images: int) -> list[str]:
    """The questions with one `<image>` for each image: in front of the first, unless it has them.

    Raises:
        BadPrompt: another number of marks than images, or a mark in a later turn.
    """
    first, *rest = questions
    if any(IMAGE in question for question in rest):
        raise BadPrompt(f"{IMAGE} stands in a later turn; images belong to the first")
    marks = first.count(IMAGE)
    if marks not in (0, num_images):
        raise BadPrompt(f"{counted(marks, f'{IMAGE} mark')} for {counted(num_images, 'image')}")
    return [first if marks else f"{IMAGE}\n" * num_images + first, *rest]
