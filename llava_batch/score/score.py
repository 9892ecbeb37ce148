"""`score`: match the answers to the annotations, compute the figures, write the files."""

import json
from typing import Any

from llava_batch.answers.folder import open_answers
from llava_batch.errors import UsageError
from llava_batch.score.annotations import BENCHMARKS, Item, read_items
from llava_batch.score.figures import FIGURES, figures
from llava_batch.score.predictions import Given, GivenAnswers, read_given
from llava_batch.score.submissions import mme_question, submission
from llava_batch.storage import locate, write_whole

_NO_ANNOTATIONS_NEEDED = ("gqa", "mm_vet", "llava_bench")


def score(
    *,
    answers: str,
    benchmark: str,
    annotations: str | None = None,
    export: str | None = None,
    output: str | None = None,
    only_answered: bool = False,
) -> dict[str, Any]:
    """Score `answers` (an output folder, or LLaVA's answers file) on `benchmark`.

    Returns what is written as JSON to `output` (by default `_score_<benchmark>.json` beside the
    answers; nowhere for an answers file): the metric, its groups, and how many questions were
    answered, missing or in error. `export` is the file (for MME the folder) for the evaluator.
    `only_answered` leaves questions without an answer out of the figures and the export.

    Raises:
        UsageError: an unknown benchmark, files that do not fit, nothing to do.
    """
    if benchmark not in BENCHMARKS:
        raise UsageError(f"--benchmark {benchmark}: give one of {', '.join(BENCHMARKS)}")
    given = read_given(answers)
    pairs = _matched(benchmark, given, annotations)
    if only_answered:
        pairs = [(item, found) for item, found in pairs if found]
    if not any(found for _, found in pairs):
        raise UsageError(
            f"--answers {answers}: none of its {len(given.all)} answers is to a question of "
            f"--annotations {annotations}; are they of the same split?"
        )
    result = _counts(benchmark, pairs, len(given.all)) | _figures(benchmark, pairs)
    if export is None and "not_scored" in result:
        raise UsageError(f"--benchmark {benchmark}: {result['not_scored']}; give --export FILE")
    if export is not None:
        _write_export(benchmark, pairs, export, _model_id(answers), annotations)
    where = output or (None if answers.endswith(".jsonl") else _beside(answers, benchmark))
    if where is not None:
        _write(where, (json.dumps(result, indent=2) + "\n").encode())
    return result


def _matched(
    benchmark: str, given: GivenAnswers, annotations: str | None
) -> list[tuple[Item, Given | None]]:
    if annotations is None:
        if benchmark not in _NO_ANNOTATIONS_NEEDED:
            raise UsageError(f"--benchmark {benchmark} needs --annotations FILE")
        return [(Item(raw_id=_number(g.question_id)), g) for g in given.all]
    items = read_items(benchmark, annotations)
    if benchmark == "mme":
        by_question = {_mme_spot(g): g for g in given.all}
        return [(i, by_question.get((i.image, mme_question(i.question)))) for i in items]
    return [
        (i, given.find(question_id=i.question_id, image=i.image, question=i.question))
        for i in items
    ]


def _mme_spot(given: Given) -> tuple[str, str]:
    """Category and file of an answer (from LLaVA's id, else the key), and its bare question."""
    name = given.question_id if "/" in given.question_id else given.image
    category, _, file = name.rpartition("/")
    return f"{category.split('/')[0]}/{file.split('.')[0]}", mme_question(given.question)


def _number(question_id: str) -> int | str:
    """An id as LLaVA's files have it, where numbers are numbers."""
    return int(question_id) if question_id.isascii() and question_id.isdigit() else question_id


def _counts(
    benchmark: str, pairs: list[tuple[Item, Given | None]], num_answers: int
) -> dict[str, Any]:
    found = [answer for _, answer in pairs if answer]
    return {
        "benchmark": benchmark,
        "num_questions": len(pairs),
        "num_answered": sum(answer.ok for answer in found),
        "num_errors": sum(not answer.ok for answer in found),
        "num_missing": len(pairs) - len(found),
        "num_answers_unused": num_answers - len({id(answer) for answer in found}),
    }


def _figures(benchmark: str, pairs: list[tuple[Item, Given | None]]) -> dict[str, Any]:
    if benchmark not in FIGURES:
        return {"not_scored": "its own server or judge scores it"}
    if not all(item.references for item, _ in pairs):
        return {"not_scored": "the annotations hold no right answers"}
    return figures(benchmark, [(item, found.text if found else "") for item, found in pairs])


def _write_export(
    benchmark: str,
    pairs: list[tuple[Item, Given | None]],
    export: str,
    model_id: str,
    annotations: str | None,
) -> None:
    files = submission(benchmark, pairs, model_id=model_id, annotations=annotations)
    for name, data in files.items():
        _write(f"{export.rstrip('/')}/{name}" if name else export, data)


def _write(where: str, data: bytes) -> None:
    location = locate(where)
    try:
        write_whole(location.fs, location.path, data)
    except OSError as error:
        raise UsageError(f"{location.shown}: cannot be written ({error})") from None


def _beside(answers: str, benchmark: str) -> str:
    folder = answers
    if answers.endswith((".parquet", ".arrow")):
        folder = answers.rpartition("/")[0] or "."
    return f"{folder.rstrip('/')}/_score_{benchmark}.json"


def _model_id(answers: str) -> str:
    if answers.endswith(".jsonl"):
        return ""
    metadata: dict[bytes, bytes] = open_answers(answers).schema.metadata or {}
    return metadata.get(b"llava_batch.model", b"").decode()
