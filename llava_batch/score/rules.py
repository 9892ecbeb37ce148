"""The benchmarks' own metrics, each a function of one prediction and its references.

Every function reproduces the official evaluator, quirks and all, because published figures carry
them; each docstring names its quirks. Answers are taken as they stand: the original evaluation
strips white space when it stores an answer, so strip first to compare with it. Nothing here reads
files, knows the answers table, or judges free-form answers (LLaVA-Bench and MM-Vet ask a model).

Sources: VQA's `vqaEval.py`, MMF's `EvalAIAnswerProcessor` and `TextVQAAccuracyEvaluator` (m4c),
LLaVA's `eval_pope.py` and `eval_science_qa.py`, GQA's `eval.py`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The words that the official tables restore an apostrophe in. A table entry is one of these with
# one apostrophe left out ("couldnt've", "couldn'tve"); words with capitals in the official tables
# ("I'd've") are left out, since text is lower case by the time it is looked up.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
    you'd've you'll you're you've
"""


def _apostrophes_left_out(words: str) -> dict[str, str]:
    table = {
        word[:i] + word[i + 1 :]: word
        for word in words.split()
        for i, char in enumerate(word)
        if char == "'"
    }
    return table | {"somebody'd": "somebodyd"}  # the official entry takes the apostrophe away


_APOSTROPHES = _apostrophes_left_out(_CONTRACTIONS)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_PERIOD_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
_MAX_PERIODS = int(re.UNICODE)  # the official code passes this flag where `count` stands: 32


def _strip_punctuation(text: str) -> str:
    digits = _COMMA_BETWEEN_DIGITS.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if beside_space or digits else " ")
    return _PERIOD_BEFORE_NO_DIGIT.sub("", result, count=_MAX_PERIODS)


def _digits_and_articles(text: str) -> str:
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def _trim(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _leave_one_out(answer: str, references: Sequence[str]) -> float:
    """Mean over references, each left out once, of min(1, matches among the others / 3)."""
    matches = [reference == answer for reference in references]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The official VQA accuracy of one answer, 0 to 1 (VQAv2 and VizWiz; ten references).

    Quirks kept: where all references agree (after trimming) nothing is normalised, so `Yes` and
    `yes.` score 0 against ten `yes`; otherwise both sides are. Punctuation becomes a space, but
    vanishes where it touches a space anywhere in the text or any digits are grouped by a comma;
    only the first 32 periods go, and none before a digit; `none` is `0`; articles go; a few words
    get their apostrophe back (`somebody'd` loses its own). References without ids count as
    distinct. Raises `ValueError` without references.
    """
    if not references:
        raise ValueError("vqa_accuracy needs at least one reference, got none")
    answer, references = _trim(answer), [_trim(reference) for reference in references]
    if len(set(references)) > 1:
        answer, *references = [
            _digits_and_articles(_strip_punctuation(text)) for text in (answer, *references)
        ]
    return _leave_one_out(answer, references)


def m4c_normalize(text: str) -> str:
    """The m4c processor's form of an answer: what TextVQA compares and LLaVA submits for VQAv2.

    Quirks kept: `,` and `?` go before anything else (so the rule for grouped digits never holds),
    and `'s` becomes a word of its own; then as in `vqa_accuracy`.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _digits_and_articles(_strip_punctuation(_trim(text)))


def m4c_accuracy(answer: str, references: Sequence[str]) -> float:
    """TextVQA's accuracy of one answer, 0 to 1, over (ten) references, all through m4c.

    Unlike `vqa_accuracy` it always normalises. The official evaluator insists on ten references;
    other counts are scored by the same rule here. Raises `ValueError` without references.
    """
    if not references:
        raise ValueError("m4c_accuracy needs at least one reference, got none")
    return _leave_one_out(m4c_normalize(answer), [m4c_normalize(text) for text in references])


def vizwiz_accuracy(answer: str, references: Sequence[str]) -> float:
    """VizWiz's accuracy of one answer, 0 to 1: the VQA accuracy, `unanswerable` a plain answer."""
    return vqa_accuracy(answer, references)


def gqa_normalize(text: str) -> str:
    """An answer as LLaVA hands it to GQA's evaluator: no final periods, lower case."""
    return text.rstrip(".").lower()


def gqa_correct(answer: str, reference: str) -> bool:
    """Whether GQA's evaluator counts the answer: equal after `gqa_normalize`, nothing else.

    Quirk kept: articles, plurals and white space count (`a dog` is not `dog`), and only the
    prediction is normalised.
    """
    return gqa_normalize(answer) == reference


def pope_verdict(text: str) -> str:
    """`yes` or `no` as LLaVA's POPE parser reads an answer.

    Quirks kept: only the text before the first period counts; words are split at single spaces,
    commas removed; `No`, `no` or `not` among them is no, and everything else is yes: `NO`, `Nope`,
    `none`, `isn't`, `No` before a line break, and the empty answer too.
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


@dataclass(frozen=True, kw_only=True)
class PopeSummary:
    """POPE's figures, 0 to 1, `yes` being the positive class; a ratio over nothing is 0.0
    (the official script divides by zero there)."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def pope_summary(verdicts: Iterable[str], labels: Iterable[str]) -> PopeSummary:
    """Summarise verdicts (of `pope_verdict`) against labels, one for one.

    Quirk kept: a label other than `no` counts as yes. Raises `ValueError` on unequal lengths.
    """
    pairs = [(v != "no", label != "no") for v, label in zip(verdicts, labels, strict=True)]
    hits = sum(said and true for said, true in pairs)
    said_yes, true_yes = sum(said for said, _ in pairs), sum(true for _, true in pairs)
    precision, recall = _ratio(hits, said_yes), _ratio(hits, true_yes)
    return PopeSummary(
        accuracy=_ratio(sum(said == true for said, true in pairs), len(pairs)),
        precision=precision,
        recall=recall,
        f1=_ratio(2 * precision * recall, precision + recall),
        yes_ratio=_ratio(said_yes, len(pairs)),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")


def scienceqa_option(text: str, num_options: int) -> int | None:
    """The index of the option that a ScienceQA answer names, or None where the parser fails.

    Quirks kept: the whole text is one of A to E, or begins with such a letter and `. `, or holds
    `The answer is X.` exactly once, whose period may be any character but a line break and must
    be there. `(A)`, `a`, `A.` and the option's own words are failures, and so is a letter beyond
    `num_options`.
    """
    letters = "ABCDE"
    if len(text) == 1 and text in letters:
        letter = text
    elif len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        letter = text[0]
    else:
        named = _ANSWER_IS.findall(text)
        letter = named[0] if len(named) == 1 else ""
    index = letters.find(letter) if letter else -1
    return index if 0 <= index < num_options else None
