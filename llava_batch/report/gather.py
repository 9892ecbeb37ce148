"""An output folder → what the page says of it, in one pass over the answers.

Only the columns that are shown are read, batch by batch; of the rows, only a bounded sample is kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from llava_batch.answers.folder import AnswerRow, Answers
from llava_batch.errors import UsageError, first_line
from llava_batch.ids import image_of
from llava_batch.report.choices import ChoiceCounts
from llava_batch.report.counts import Counts
from llava_batch.report.sample import LAST_RANK, Smallest, sample_rank

COLUMNS = (
    "id", "unit", "key", "question_id", "status", "error_code", "error_message", "finish_reason",
    "answer", "answer_tokens", "mean_logprob", "prompt", "prompt_tokens", "width", "height", "turns",
)  # fmt: skip
SAMPLE_ROWS = 400
ERROR_EXAMPLES = 12
"""Rows shown of each error code."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What one pass over a folder gave: counts of everything, and the rows that are shown."""

    counts: Counts
    sample: list[AnswerRow]
    """Answered rows, by rank."""
    errors: list[AnswerRow]
    """Examples of each error code, by code and rank."""


def gather(
    answers: Answers,
    *,
    seed: int,
    preferred: frozenset[str] = frozenset(),
    choices: ChoiceCounts | None = None,
) -> Gathered:
    """Count every row, also in `choices`, and draw the sample; rows of `preferred` images are drawn
    before others.

    Raises:
        UsageError: a table cannot be read, or lacks a column of the answers.
    """
    counts = Counts()
    sample: Smallest[AnswerRow] = Smallest(SAMPLE_ROWS)
    errors: dict[str, Smallest[AnswerRow]] = {}
    for batch in batches(answers, COLUMNS):
        ids, images = batch["id"].to_pylist(), images_of(batch)
        counts.add(batch, images)
        if choices is not None:
            choices.add(batch)
        codes, good = batch["error_code"].to_pylist(), batch["status"].to_pylist()
        for i, ident in enumerate(ids):
            rank = sample_rank(seed, ident)
            if good[i] == "ok":
                keeper = sample
                rank += 0 if images[i] in preferred else LAST_RANK
            else:
                keeper = errors.setdefault(codes[i] or "unknown", Smallest(ERROR_EXAMPLES))
            if keeper.takes(rank):
                keeper.offer(rank, batch.slice(i, 1).to_pylist()[0] | {"image": images[i]})
    examples = [row for code in sorted(errors) for row in errors[code].values()]
    return Gathered(counts=counts, sample=sample.values(), errors=examples)


def images_of(batch: pa.RecordBatch) -> list[str]:
    """Each row's image, as `<unit>/<key>`."""
    pairs = zip(batch["id"].to_pylist(), batch["unit"].to_pylist(), strict=True)
    return [image_of(ident, unit) for ident, unit in pairs]


def find_rows(answers: Answers, wanted: Callable[[str], bool]) -> dict[str, AnswerRow]:
    """The rows whose id is wanted, by id."""
    found = {}
    for batch in batches(answers, COLUMNS):
        images = images_of(batch)
        for i, ident in enumerate(batch["id"].to_pylist()):
            if wanted(ident):
                found[ident] = batch.slice(i, 1).to_pylist()[0] | {"image": images[i]}
    return found


def batches(answers: Answers, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """The named columns of all tables, in the order of units and rows.

    Raises:
        UsageError: a table cannot be read, or lacks one of the columns.
    """
    for path in answers.paths:
        try:
            yield from answers.batches(path, columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{path}: cannot be read ({first_line(error)})") from None
