"""The answers that are scored, found by question id, or by image and question.

Question ids are not always unique (LLaVA's files for TextVQA and MME use the image's name), nor
the same in the questions and the annotations (POPE numbers each category anew): an id counts only
where it is unique and its question, as far as both sides have one, is the same.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llava_batch.answers.folder import open_answers
from llava_batch.errors import UsageError
from llava_batch.ids import image_of
from llava_batch.prompts.questions import join_key
from llava_batch.storage import locate, read_bytes

_COLUMNS = ("id", "unit", "key", "question_id", "turns", "answer", "status")
_OCR = "reference ocr token"


@dataclass(frozen=True, kw_only=True)
class Given:
    """One answer. `text` is stripped, as the original evaluation stores it, and empty where the
    row is in error; `image` is the key (empty where not known), `question` the text that was asked,
    suffix and all."""

    question_id: str
    image: str
    question: str
    text: str
    ok: bool


class GivenAnswers:
    """All answers of a run, in its order, looked up by what an annotation knows of a question."""

    def __init__(self, answers: Iterable[Given]) -> None:
        self.all = list(answers)
        self._by_id: dict[str, Given] = {}
        self._by_question: dict[tuple[str, str], Given] = {}
        shared: set[str] = set()
        for given in self.all:
            if self._by_id.setdefault(given.question_id, given) is not given:
                shared.add(given.question_id)
            spot = _spot(given.image or given.question_id, given.question)
            self._by_question.setdefault(spot, given)
        for question_id in shared:
            del self._by_id[question_id]

    def find(self, *, question_id: str = "", image: str = "", question: str = "") -> Given | None:
        """The answer to a question known by any of these; None where there is none."""
        given = self._by_id.get(question_id)
        if given and _agree(given, image, question):
            return given
        return self._by_question.get(_spot(image, question)) if image and question else None


def question_line(text: str) -> str:
    """A question without what presets and OCR tokens put around it: its first line, lower case."""
    for line in text.splitlines():
        line = line.strip().lower()
        if line and not line.startswith(_OCR):
            return line
    return ""


def read_given(path: str) -> GivenAnswers:
    """The answers of an output folder, or of a LLaVA answers file (`.jsonl`).

    Raises:
        UsageError: no answers, several samples of one question, or a line that is not an answer.
    """
    return GivenAnswers(_from_lines(path) if path.endswith(".jsonl") else _from_tables(path))


def _from_tables(path: str) -> Iterator[Given]:
    for row in open_answers(path).rows(_COLUMNS):
        if "~" in row["id"].removeprefix(image_of(row["id"], row["unit"])):
            raise UsageError(
                f"--answers {path}: {row['id']} is one of several samples; score a run with one"
            )
        turns = row["turns"] or [{"question": ""}]
        yield Given(
            question_id=row["question_id"] or "",
            image=row["key"],
            question=turns[-1]["question"] or "",
            text=(row["answer"] or "").strip(),
            ok=row["status"] == "ok",
        )


def _from_lines(path: str) -> Iterator[Given]:
    location = locate(path)
    data = read_bytes(location.fs, location.path)
    if data is None:
        raise UsageError(f"--answers {path}: no such file")
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question_id, text = str(row["question_id"]), str(row["text"])
            question = str(row.get("prompt", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(
                f"--answers {path}, line {number}: expected an object with question_id and text"
            ) from None
        yield Given(
            question_id=question_id,
            image=str(row.get("image", "")),
            question=question,
            text=text.strip(),
            ok=True,
        )


def _agree(given: Given, image: str, question: str) -> bool:
    """Whether nothing that both sides know speaks against their being the same question."""
    asked, wanted = _spot(given.image, given.question), _spot(image, question)
    return all(a == b for a, b in zip(asked, wanted, strict=True) if a and b)


def _spot(image: str, question: str) -> tuple[str, str]:
    try:
        return join_key(image), question_line(question)
    except ValueError:
        return image, question_line(question)
