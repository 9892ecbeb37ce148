"""A benchmark's figures, from its annotated questions and the answers given. Shares are 0 to 1.

A question without an answer, or whose row is in error, counts as the empty answer, as it would with
the official evaluators; how many there were stands beside the figure. MMBench is scored by its
server, LLaVA-Bench and MM-Vet by another model: here they are exported only.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from llava_batch.score.annotations import Item
from llava_batch.score.rules import (
    gqa_correct,
    m4c_accuracy,
    m4c_normalize,
    pope_summary,
    pope_verdict,
    scienceqa_option,
    vizwiz_accuracy,
    vqa_accuracy,
)

Answered = Sequence[tuple[Item, str]]
"""Annotated questions, each with the text given as its answer."""


def figures(benchmark: str, pairs: Answered) -> dict[str, Any]:
    """The metric of `benchmark` under its usual name, and its averages by group."""
    return FIGURES[benchmark](pairs)


def _averaged(score: Callable[[str, Item], float]) -> Callable[[Answered], dict[str, Any]]:
    def averaged(pairs: Answered) -> dict[str, Any]:
        scored = [(item, float(score(text, item))) for item, text in pairs]
        return {"accuracy": _mean(value for _, value in scored), "groups": _by_group(scored)}

    return averaged


def _vqa_with_submission(
    score: Callable[[str, Sequence[str]], float],
) -> Callable[[Answered], dict[str, Any]]:
    """VQA accuracy of the answers as they stand, and as LLaVA submits them (through m4c first,
    which is what the paper's figures are of)."""

    def both(pairs: Answered) -> dict[str, Any]:
        as_given = _averaged(lambda text, item: score(text, item.references))(pairs)
        submitted = _mean(score(m4c_normalize(text), item.references) for item, text in pairs)
        return {"accuracy": as_given["accuracy"], "accuracy_as_submitted": submitted,
                "groups": as_given["groups"]}  # fmt: skip

    return both


def _pope(pairs: Answered) -> dict[str, Any]:
    """F1 and the rest for each category; over several, their mean (the paper's figure is F1's)."""
    categories: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item, text in pairs:
        categories[item.groups[0]].append((pope_verdict(text), item.references[0]))
    groups = {
        name: asdict(pope_summary(*zip(*verdicts, strict=True)))
        for name, verdicts in sorted(categories.items())
    }
    names = next(iter(groups.values()))
    return {name: fmean(g[name] for g in groups.values()) for name in names} | {"groups": groups}


def _scienceqa(pairs: Answered) -> dict[str, Any]:
    """`accuracy` over the questions with an image (the paper's SQA-I), `accuracy_all` over all."""
    scored = [
        (item, float(scienceqa_option(text, item.options) == int(item.references[0])))
        for item, text in pairs
    ]
    groups = _by_group(scored)
    everything = _mean(value for _, value in scored)
    return {"accuracy": groups.get("image"), "accuracy_all": everything, "groups": groups}


def _mme(pairs: Answered) -> dict[str, Any]:
    """MME's scores: for each category 100 times accuracy plus accuracy+ (images with every question
    right); perception is the paper's figure."""
    images: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item, text in pairs:
        right = mme_verdict(text) == item.references[0].lower()
        images[item.groups[0]][item.image].append(right)
    groups = {
        category: 100 * (_mean(x for rights in by_image.values() for x in rights) or 0.0)
        + 100 * (_mean(all(rights) for rights in by_image.values()) or 0.0)
        for category, by_image in sorted(images.items())
    }
    cognition = sum(score for name, score in groups.items() if name in _COGNITION)
    return {"perception": sum(groups.values()) - cognition, "cognition": cognition,
            "groups": groups}  # fmt: skip


_COGNITION = frozenset(
    {"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"}
)


def mme_verdict(text: str) -> str:
    """`yes`, `no` or `other` as MME's script reads an answer: by its first four letters."""
    text = text.lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


FIGURES: dict[str, Callable[[Answered], dict[str, Any]]] = {
    "vqav2": _vqa_with_submission(vqa_accuracy),
    "vizwiz": _vqa_with_submission(vizwiz_accuracy),
    "textvqa": _averaged(lambda text, item: m4c_accuracy(text, item.references)),
    "gqa": _averaged(lambda text, item: gqa_correct(text, item.references[0])),
    "seed": _averaged(lambda text, item: text == item.references[0]),
    "pope": _pope,
    "scienceqa": _scienceqa,
    "mme": _mme,
}


def _by_group(scored: Iterable[tuple[Item, float]]) -> dict[str, float | None]:
    groups: dict[str, list[float]] = defaultdict(list)
    for item, value in scored:
        for name in item.groups:
            groups[name].append(value)
    return {name: _mean(values) for name, values in sorted(groups.items())}


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return fmean(listed) if listed else None
