"""Answer rows: what the answers table says of one image, made from what was asked and completed.

Pure functions over plain dicts; the columns are those of `schemas/answers.json`, beside them the
bookkeeping that whoever gathers a unit's rows needs.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llava_batch.engine.request import Completion
from llava_batch.errors import RowError
from llava_batch.ids import image_id, row_id
from llava_batch.tables import BOOKKEEPING, load_schema

_ENGINE_CODES = {
    "prompt_too_long": RowError.PROMPT_TOO_LONG,
    "bad_prompt": RowError.BAD_PROMPT,
    "out_of_memory": RowError.OUT_OF_MEMORY,
    "non_finite": RowError.ENGINE_FAILED,
}

RowDict = dict[str, Any]


def generated_schema(keep: Sequence[pa.Field]) -> pa.Schema:
    """The answers' columns (nullable here), bookkeeping, and the kept columns."""
    answers = [pa.field(f.name, f.type) for f in load_schema("answers")]
    return pa.schema([*answers, *BOOKKEEPING, *keep])


def image_of(row: RowDict) -> str:
    """The id of a prepared row's image."""
    return image_id(row["unit"], row["key"], row["mark"])


def head(row: RowDict, ask: RowDict, sample: int, num_samples: int) -> RowDict:
    """The columns that say which image and question an answer belongs to."""
    names = ("unit", "key", "num_images", "image_sha256", "width", "height", "ordinal", "end")
    return {
        "id": row_id(image_of(row), ask["question_id"], sample if num_samples > 1 else None),
        "question_id": ask["question_id"],
        **{name: row[name] for name in names},
    }


def without_asks(row: RowDict) -> RowDict:
    """The end row of a unit, or the row of an image of which nothing was asked."""
    names = ("unit", "ordinal", "end", "error_code", "error_message")
    return {**{name: row[name] for name in names}, "position": 0, "siblings": 0}


def failed(code: str | None, message: str | None) -> RowDict:
    return {"status": "error", "error_code": code, "error_message": message}


def cut_off(text: str, max_new_tokens: int) -> RowDict:
    """The row of an answer whose JSON has no end; what was said stands in its message."""
    why = f"its JSON has no end after --max-new-tokens {max_new_tokens}, give more"
    return failed(RowError.ANSWER_CUT_OFF.value, f"{why}; it said: {text}")


def body(ask: RowDict, turns: Sequence[Completion], texts: Sequence[str]) -> RowDict:
    """The columns that answers fill, from each turn's completion and its text, in order."""
    broken = next((c for c in turns if c.finish_reason == "error"), None)
    if broken is not None:
        code = _ENGINE_CODES.get(broken.error_code or "", RowError.ENGINE_FAILED)
        return failed(code.value, broken.error)
    told = [
        {
            "question": question,
            "answer": text.strip(),
            "finish_reason": c.finish_reason,
            "answer_tokens": len(c.token_ids),
            "mean_logprob": _logprob(c),
        }
        for question, text, c in zip(ask["questions"], texts, turns, strict=True)
    ]
    prompt, num_tokens = ask["segments"][0], len(ask["token_ids"][0])
    for i, segment in enumerate(ask["segments"][1:]):
        prompt += texts[i] + segment
        num_tokens += len(turns[i].token_ids) + len(ask["token_ids"][i + 1])
    last = {name: value for name, value in told[-1].items() if name != "question"}
    return {"turns": told, "prompt": prompt, "prompt_tokens": num_tokens, "status": "ok", **last}


def _logprob(completion: Completion) -> float | None:
    """The answer's mean log-probability; of a choice, the logarithm of its share among the choices."""
    if completion.probability is not None:
        return math.log(completion.probability) if completion.probability > 0 else -math.inf
    return completion.mean_logprob
