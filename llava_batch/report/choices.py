"""How often each of a run's `--choices` was the answer, to each question that the run asked of all."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa


class ChoiceCounts:
    """Counted batch by batch; of a file's or a column's questions all together, since there may be as
    many as rows. Nothing is counted where there are no `choices`."""

    def __init__(self, choices: Sequence[str], questions: Sequence[str]) -> None:
        self._choices = list(dict.fromkeys(choice.strip() for choice in choices))  # as answers are
        self._questions = list(questions)
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of answer rows."""
        if not self._choices:
            return
        ids = batch["question_id"].to_pylist()
        answers = batch["answer"].to_pylist()  # null where the row is in error
        pairs = zip((self._question(i) for i in ids), answers, strict=True)
        self._counts.update((question, a) for question, a in pairs if a in self._choices)

    def table(self) -> list[dict[str, Any]]:
        """For each question with an answer: its text (empty where all are counted together), how many
        answers there are, and [(choice, how often it was the answer)]."""
        rows = []
        for question in dict.fromkeys(name for name, _ in self._counts):
            counts = [(choice, self._counts[question, choice]) for choice in self._choices]
            total = sum(count for _, count in counts)
            rows.append({"question": question, "answers": total, "counts": counts})
        order = {question: i for i, question in enumerate(self._questions)}
        return sorted(rows, key=lambda row: order.get(row["question"], -1))

    def _question(self, question_id: str | None) -> str:
        """The text of one of several `--question`s, whose id is its place; else empty."""
        if len(self._questions) < 2 or question_id is None or not question_id.isdecimal():
            return ""
        place = int(question_id)
        return self._questions[place] if place < len(self._questions) else ""
