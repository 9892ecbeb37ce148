"""Instruction data from answers: filtered, in LLaVA's conversation form, rejects kept and counted.

    counts = write_instructions("OUT", "INSTRUCTIONS", load_recipe("detail"))

One table of the `instructions` schema for each table of answers, under the same name, and
`_counts.json` beside them. Written whole and from the answers alone, so that running it again, or
with other filters, is safe and needs no model.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_batch.answers.folder import AnswerRow, Turn, open_answers
from llava_batch.instruct.filters import Verdict, count, judge, num_words
from llava_batch.prompts.recipe import Recipe
from llava_batch.storage import locate, write_whole
from llava_batch.tables import load_schema


def conversation(turns: Iterable[Turn]) -> list[dict[str, str]]:
    """LLaVA's `conversations` of an answer row's turns: `<image>` and a line break before the first
    question, and nowhere else (marks that a question brought are taken out)."""
    said: list[dict[str, str]] = []
    for turn in turns:
        question = turn["question"].replace("<image>", "").strip()
        said.append({"from": "human", "value": question if said else f"<image>\n{question}"})
        said.append({"from": "gpt", "value": turn["answer"]})
    return said


def instruction_row(row: AnswerRow, verdict: Verdict, recipe: str) -> dict[str, Any]:
    """One row of the `instructions` schema from an answer row and its verdict."""
    turns = row["turns"] or []
    logprobs = [turn["mean_logprob"] for turn in turns if turn["mean_logprob"] is not None]
    good = verdict.status != "error"
    return {
        **{name: row[name] for name in ("id", "unit", "key", "image_sha256")},
        "recipe": recipe,
        "conversations": conversation(turns) if good else None,
        "num_words": sum(num_words(turn["answer"]) for turn in turns) if good else None,
        "mean_logprob": min(logprobs, default=None) if good else None,
        "status": verdict.status,
        "reason": verdict.reason,
    }


def write_instructions(answers: str, output: str, recipe: Recipe) -> dict[str, int]:
    """Filter the answers in the folder `answers` into the folder `output`; both may be URIs.

    Returns how many rows were `kept`, `rejected:<filter>` and `error:<code>`, which is also what
    `_counts.json` says. Memory holds one table at a time.

    Raises:
        UsageError: there are no answers.
    """
    source, target = open_answers(answers), locate(output)
    schema = load_schema("instructions")
    schema = schema.with_metadata({**(source.schema.metadata or {}), **(schema.metadata or {})})
    total: Counter[str] = Counter()
    for path, rows in source.tables():
        judged = list(judge(rows, recipe.filters))
        total.update(count(verdict for _, verdict in judged))
        made = [instruction_row(row, verdict, recipe.name) for row, verdict in judged]
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(made, schema=schema), buffer)
        name = path.rpartition(".")[0] + ".parquet"
        write_whole(target.fs, f"{target.path}/{name}", buffer.getvalue())
    counts = dict(sorted(total.items()))
    summary = {"recipe": recipe.name, "rows": sum(counts.values()), "counts": counts}
    text = json.dumps(summary, indent=2) + "\n"
    write_whole(target.fs, f"{target.path}/_counts.json", text.encode())
    return counts
