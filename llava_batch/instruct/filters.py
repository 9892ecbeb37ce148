"""Filters over answers: which are fit for training, and why the others are not.

Pure functions over rows of the answers table (as dictionaries): nothing is dropped here, each row
comes back with a verdict, so that rejects can be kept and counted. The measures look at text and
at the model's own probabilities; whether an answer is true of its image they do not know.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from llava_batch.answers.folder import AnswerRow, Turn
from llava_batch.prompts.recipe import Filters

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Verdict:
    """What became of a row: `kept`, `rejected` (reason: a filter) or `error` (reason: the row's
    error code)."""

    status: str
    reason: str | None = None


def judge(rows: Iterable[AnswerRow], filters: Filters) -> Iterator[tuple[AnswerRow, Verdict]]:
    """Each row with its verdict, in order.

    Near-duplicates are looked for among neighbouring rows of one image, which is how the answers
    table has them; of several alike the first that passes every other filter is kept.
    """
    for _, group in groupby(rows, key=lambda row: (row["unit"], row["key"])):
        kept: dict[tuple[str, ...], list[str]] = {}
        for row in group:
            verdict = _judge_alone(row, filters)
            if verdict.status == "kept" and filters.max_similarity is not None:
                answers = "\n".join(turn["answer"] for turn in row["turns"])
                alike = kept.setdefault(tuple(turn["question"] for turn in row["turns"]), [])
                if any(similarity(answers, other) > filters.max_similarity for other in alike):
                    verdict = Verdict("rejected", "near_duplicate")
                else:
                    alike.append(answers)
            yield row, verdict


def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many rows met each end: `kept`, and `rejected:<reason>` and `error:<code>`."""
    counter = Counter(v.status if v.reason is None else f"{v.status}:{v.reason}" for v in verdicts)
    return dict(sorted(counter.items()))


def _judge_alone(row: AnswerRow, filters: Filters) -> Verdict:
    if row["status"] != "ok":
        return Verdict("error", row["error_code"])
    for turn in row["turns"]:
        reason = _why_not(turn, filters)
        if reason:
            return Verdict("rejected", reason)
    return Verdict("kept")


def _why_not(turn: Turn, filters: Filters) -> str | None:
    """The first filter that a turn's answer fails, or None where it passes them all."""
    answer, logprob = turn["answer"], turn["mean_logprob"]
    words = num_words(answer)
    if words < filters.min_words:
        return "too_short"
    if filters.max_words is not None and words > filters.max_words:
        return "too_long"
    if filters.unfinished and turn["finish_reason"] == "length":
        return "unfinished"
    if filters.max_repetition is not None and repetition(answer) > filters.max_repetition:
        return "repetition"
    if filters.min_mean_logprob is not None and (
        logprob is None or not logprob >= filters.min_mean_logprob
    ):
        return "low_logprob"
    if filters.refusals and is_refusal(answer):
        return "refusal"
    return None


def num_words(text: str) -> int:
    """Words of a text: runs of letters, digits and underscores."""
    return len(_WORD.findall(text))


def repetition(text: str) -> float:
    """The share of an answer that repeats, 0 to 1: the larger of the share of 4-word sequences that
    occurred before in it, and of sentences that did. Case and punctuation do not count."""
    words = [word.lower() for word in _WORD.findall(text)]
    sequences = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    sentences = [tuple(_WORD.findall(s.lower())) for s in _SENTENCE_END.split(text)]
    return max(_repeated(sequences), _repeated([s for s in sentences if s]))


def _repeated(items: list[tuple[str, ...]]) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0


def similarity(one: str, other: str) -> float:
    """How alike two answers are, 0 to 1: shared 3-word sequences over all of both (Jaccard); of
    texts under three words, whether their words are equal."""
    left, right = _shingles(one), _shingles(other)
    return len(left & right) / len(left | right) if left | right else 1.0


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < 3:
        return {tuple(words)}
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


_REFUSAL = re.compile(
    r"""^\W*(?:
        (?:i['’]m\ |i\ am\ )?(?:very\ |so\ )?(?:sorry|afraid)\b
        | (?:unfortunately|regrettably|apologies)\b[^.]{0,80}\b(?:can(?:no|['’])t|unable|not\ able)
        | i\ (?:can(?:no|['’])t|could\ not|am\ unable|am\ not\ able|do\ not\ have|don['’]t\ have)\b
          [^.]{0,60}\b(?:see|view|access|image|picture|photo|assist|help|answer|provide|process)
        | as\ an?\ (?:\w+\ ){0,3}(?:ai|artificial\ intelligence|language\ model|assistant)\b
        | (?:no\ image|the\ image)\ (?:was|is|has\ been)\ not\ (?:provided|attached|visible|shown)
        | (?:please|could\ you|you\ (?:need|have)\ to)\ (?:provide|upload|attach|share)\b
          [^.]{0,30}\b(?:image|picture|photo)
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def is_refusal(text: str) -> bool:
    """Whether an English answer opens by declining: an apology, not seeing the image, being a
    language model, asking for the image. Other languages are not recognised."""
    return _REFUSAL.match(text) is not None
