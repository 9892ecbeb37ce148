"""The answers in the form that each official evaluator or server takes.

The forms are those of LLaVA's conversion scripts. Where the form lists every question of a split,
one without an answer is submitted as the empty string, as LLaVA does for VQAv2.
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llava_batch.errors import UsageError
from llava_batch.score.annotations import Item, read_tsv
from llava_batch.score.predictions import Given
from llava_batch.score.rules import gqa_normalize, m4c_normalize
from llava_batch.storage import locate

Matched = Sequence[tuple[Item, Given | None]]
"""A split's questions in its order, each with its answer if there is one."""

_MMBENCH_LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
_MME_SHORT = "Answer the question using a single word or phrase."
MME_YES_NO = "Please answer yes or no."


def submission(
    benchmark: str, pairs: Matched, *, model_id: str, annotations: str | None
) -> dict[str, bytes]:
    """The files to hand in: name → bytes. One file has the empty name; MME has one per category.

    Raises:
        UsageError: MMBench without openpyxl, or without its TSV.
    """
    if benchmark == "mme":
        return _mme(pairs)
    if benchmark in ("mmbench", "mmbench_cn"):
        return {"": _mmbench(pairs, annotations)}
    form = _FORMS.get(benchmark)
    return {"": form(pairs) if form else _common(pairs, model_id)}


def _vqav2(pairs: Matched) -> bytes:
    return _json([
        {"question_id": item.raw_id, "answer": m4c_normalize(_text(given))}
        for item, given in pairs
    ])  # fmt: skip


def _vizwiz(pairs: Matched) -> bytes:
    return _json(
        [{"image": item.image, "answer": m4c_normalize(_text(given))} for item, given in pairs]
    )


def _gqa(pairs: Matched) -> bytes:
    return _json([
        {"questionId": item.question_id, "prediction": gqa_normalize(_text(given))}
        for item, given in pairs
    ])  # fmt: skip


def _seed(pairs: Matched) -> bytes:
    return _json_lines(
        {"question_id": item.raw_id, "prediction": _text(given)} for item, given in pairs
    )


def _mm_vet(pairs: Matched) -> bytes:
    return _json({f"v1_{item.question_id}": _text(given) for item, given in pairs}, indent=2)


def _common(pairs: Matched, model_id: str) -> bytes:
    """LLaVA's answers file, which its scripts for POPE, ScienceQA and TextVQA read."""
    return _json_lines(
        {
            "question_id": item.raw_id,
            "prompt": given.question if given else item.question,
            "text": _text(given),
            "answer_id": str(number),
            "model_id": model_id,
            "metadata": {},
        }
        for number, (item, given) in enumerate(pairs)
    )


def _mme(pairs: Matched) -> dict[str, bytes]:
    """For each category lines of file, question, right answer and answer, by tabs."""
    lines: dict[str, list[str]] = {}
    for item, given in pairs:
        file = item.question_id.rpartition("/")[2]
        answer = _text(given).replace("\t", " ").replace("\n", " ")
        line = "\t".join((file, item.question, item.references[0], answer))
        lines.setdefault(item.groups[0], []).append(line + "\n")
    return {f"{name}.txt": "".join(found).encode() for name, found in sorted(lines.items())}


def mme_question(text: str) -> str:
    """An MME question without its instructions and with single spaces, as it is compared."""
    return " ".join(text.replace(_MME_SHORT, " ").replace(MME_YES_NO, " ").split())


def _mmbench(pairs: Matched, annotations: str | None) -> bytes:
    """The TSV's columns less the bulky ones, with `prediction` after the options, as xlsx."""
    try:
        from openpyxl import Workbook
    except ImportError:
        raise UsageError(
            "MMBench's form is .xlsx, which needs openpyxl: pip install 'llava-batch[xlsx]'"
        ) from None
    if annotations is None:
        raise UsageError("MMBench's form repeats its TSV; give it as --annotations")
    columns, rows = read_tsv(locate(annotations))
    kept = [name for name in columns if name not in _MMBENCH_LEFT_OUT]
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append([*kept[:6], "prediction", *kept[6:]])
    for row, (_, given) in zip(rows, pairs, strict=True):
        values = [_cell(row[name]) for name in kept]
        sheet.append([*values[:6], given.text if given and given.text else None, *values[6:]])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def _cell(text: str) -> str | int | None:
    if text in ("", "nan"):
        return None
    return int(text) if text.isascii() and text.isdigit() else text


_FORMS: dict[str, Callable[[Matched], bytes]] = {
    "vqav2": _vqav2,
    "vizwiz": _vizwiz,
    "gqa": _gqa,
    "seed": _seed,
    "mm_vet": _mm_vet,
}


def _text(given: Given | None) -> str:
    return given.text if given else ""


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode()


def _json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
