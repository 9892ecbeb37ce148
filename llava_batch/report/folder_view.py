"""One folder of answers as the page shows it: what its rows gave, and what `_run.json` says."""

import os
from typing import Any

from llava_batch.answers.folder import AnswerRow, Answers
from llava_batch.answers.thumbnails import thumbnail_names
from llava_batch.errors import RowError, UsageError
from llava_batch.report import run_facts
from llava_batch.report.choices import ChoiceCounts
from llava_batch.report.counts import Counts
from llava_batch.report.gather import gather
from llava_batch.report.wording import moment
from llava_batch.storage import Location

_PRINTED_EXAMPLES = 3
"""Rows printed under each error code; the gallery has more."""


class Side:
    """One folder of the page; reads all its answers once, when it is made."""

    def __init__(self, answers: Answers, *, seed: int) -> None:
        self.answers = answers
        self.at: Location = answers.location
        self.name = os.path.basename(self.at.path.rstrip("/")) or self.at.shown
        self.run = _run_of(answers)
        self.thumbnails = thumbnail_names(self.at)
        self.choices = ChoiceCounts(
            run_facts.texts(self.run, "settings", "choices"),
            run_facts.texts(self.run, "settings", "question"),
        )
        self.gathered = gather(answers, seed=seed, preferred=self.thumbnails, choices=self.choices)

    @property
    def counts(self) -> Counts:
        return self.gathered.counts

    def context(self) -> dict[str, Any]:
        """What the template prints of this folder."""
        counts, run = self.counts, self.run
        return {
            "name": self.name,
            "path": self.at.shown,
            "model": run_facts.text(run, "model") or run_facts.text(run, "settings", "model"),
            "status": run_facts.text(run, "status"),
            "when": moment(run_facts.text(run, "started_at")),
            "fingerprint": run_facts.text(run, "fingerprint"),
            "images": counts.images,
            "rows": counts.rows,
            "ok": counts.num_ok,
            "errors": self._errors(),
            "num_errors": counts.num_errors,
            "cut_share": counts.cut_share,
            "answers": counts.answers,
            "mean_length": counts.answer_tokens / counts.answers if counts.answers else None,
            "images_per_s": run_facts.speed(run, "images_per_s"),
            "tokens_per_s": run_facts.speed(run, "answer_tokens_per_s"),
            "occupancy": run_facts.number(run, "throughput", "slot_occupancy"),
            "limit": run_facts.number(run, "settings", "limit"),
            "startup_s": run_facts.startup_s(run),
            "wall_s": run_facts.number(run, "wall_s"),
            "choices": self.choices.table(),
            "stages": run_facts.stages(run),
            "rates": run_facts.rates(run),
            "settings": run_facts.settings(run),
            "machine": run_facts.mapping(run, "machine"),
            "versions": run_facts.mapping(run, "versions"),
            "failed_units": run_facts.mapping(run, "run", "units_failed"),
        }

    def _errors(self) -> list[dict[str, Any]]:
        """The error codes, the most frequent first, each with its sentence and examples."""
        examples: dict[str, list[AnswerRow]] = {}
        for row in self.gathered.errors:
            examples.setdefault(row["error_code"] or "unknown", []).append(row)
        return [
            {
                "code": code,
                "count": count,
                "sentence": RowError(code).sentence if code in set(RowError) else "",
                "examples": [
                    {"id": row["id"], "message": row["error_message"] or ""}
                    for row in examples[code][:_PRINTED_EXAMPLES]
                ],
            }
            for code, count in self.counts.errors.most_common()
        ]


def setting_rows(sides: list[list[run_facts.Setting]]) -> list[dict[str, Any]]:
    """Each flag with its value on each side; `shown` are those that were given, or that differ."""
    by_flag: dict[str, dict[str, Any]] = {}
    for i, settings in enumerate(sides):
        for setting in settings:
            empty = {"flag": setting.flag, "help": setting.help, "values": [""] * len(sides),
                     "given": False}  # fmt: skip
            row = by_flag.setdefault(setting.flag, empty)
            row["values"][i] = setting.value
            row["given"] = row["given"] or setting.given
    for row in by_flag.values():
        row["differs"] = len(set(row["values"])) > 1
        row["shown"] = row["differs"] or row["given"]
    return sorted(by_flag.values(), key=lambda row: not row["differs"])


def _run_of(answers: Answers) -> dict[str, Any]:
    try:
        run = answers.run()
    except ValueError as error:
        shown = answers.location.child("_run.json").shown
        raise UsageError(f"{shown}: is no JSON ({error}); remove it") from None
    return run if isinstance(run, dict) else {}
