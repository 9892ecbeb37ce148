"""Folders of answers → one HTML file that stands alone.

The text is set by a template that escapes whatever it is given; the rows travel as JSON in which
`<`, `>` and `&` are escaped; a content security policy lets only this page's own script and style
run and nothing be fetched. Memory and size are bounded whatever the folder holds.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from llava_batch.answers.folder import AnswerRow, open_answers
from llava_batch.answers.thumbnails import MAX_BYTES, read_thumbnails
from llava_batch.errors import UsageError
from llava_batch.report.compare import Comparison, compare
from llava_batch.report.counts import length_bars, logprob_bars
from llava_batch.report.folder_view import Side, setting_rows
from llava_batch.report.wording import amount, duration, percent, ticks
from llava_batch.storage import Location, locate, write_whole
from llava_batch.version import __version__

SEED = 0
"""Seed of the sample, stated on the page."""

_SCRIPTS = ("text.js", "charts.js", "gallery.js", "detail.js", "main.js")


def write_report(outs: Sequence[str], target: str | None = None) -> str:
    """Write the page about one output folder, or about two side by side, and say where it lies.

    `target` is a path or URI; without it the page goes into the first folder, as `_report.html`, or
    as `_compare-<name of the second>.html` for two.

    Raises:
        UsageError: not one or two folders, a folder without answers, a target that cannot be written.
    """
    if not 1 <= len(outs) <= 2:
        raise UsageError(f"{len(outs)} folders were given; a report is about one, or compares two")
    sides = [Side(open_answers(out), seed=SEED) for out in outs]
    at = locate(target) if target else _default_target(sides)
    html = _render(sides).encode()
    try:
        write_whole(at.fs, at.path, html)
    except OSError as error:
        raise UsageError(f"{at.shown}: cannot be written ({error.strerror or error})") from None
    return at.shown


def _render(sides: list[Side]) -> str:
    compared = _compare(sides) if len(sides) == 2 else None
    shown = _shown_rows(sides, compared)
    thumbs = _thumbnails(sides, list(dict.fromkeys(rows[0]["image"] for rows in shown)))
    num_differing = compared.num_differing if compared else len(shown)
    place = {name: i for i, name in enumerate(thumbs)}
    contexts = [side.context() for side in sides]
    counts = [side.counts for side in sides]
    asked = _asked_of_all(shown)
    data = {
        "names": _names(sides),
        "asked": asked,
        "lengths": length_bars(counts),
        "logprobs": logprob_bars(counts),
        "rates": [context["rates"] for context in contexts],
        "items": [_item(rows, place, same=i >= num_differing) for i, rows in enumerate(shown)],
        "thumbs": list(thumbs.values()),
    }
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in _SCRIPTS)
    return _template().render(
        sides=[
            context | {"name": name} for context, name in zip(contexts, _names(sides), strict=True)
        ],
        comparison=compared,
        num_shown=len(shown),
        num_examples=len(sides[0].gathered.errors),
        has_thumbs=bool(thumbs),
        setting_rows=setting_rows([context["settings"] for context in contexts]),
        asked=asked,
        seed=SEED,
        version=__version__,
        data=data,
        style=Markup(style),  # our own files; their hashes stand in the policy
        script=Markup(script),
        policy=_policy(style, script),
    )


def _compare(sides: list[Side]) -> Comparison:
    first, second = sides
    preferred = first.thumbnails | second.thumbnails
    return compare(first.answers, second.answers, seed=SEED, preferred=preferred)


def _names(sides: list[Side]) -> list[str]:
    """What the sides are called: the folders' names, or their paths where the names are one."""
    names = [side.name for side in sides]
    return names if len(set(names)) == len(names) else [side.at.shown for side in sides]


def _shown_rows(sides: list[Side], compared: Comparison | None) -> list[tuple[AnswerRow, ...]]:
    if compared is not None:
        return list(compared.pairs)
    found = sides[0].gathered
    return [(row,) for row in sorted([*found.sample, *found.errors], key=lambda row: row["id"])]


def _asked_of_all(shown: list[tuple[AnswerRow, ...]]) -> list[str]:
    """The questions of the one dialogue (of one turn, mostly) that every row was asked; else none."""
    turns = (row["turns"] or [] for rows in shown for row in rows)
    asked = {tuple(t["question"] for t in some if t["question"]) for some in turns} - {()}
    return list(asked.pop()) if len(asked) == 1 else []


def _thumbnails(sides: list[Side], images: list[str]) -> dict[str, str]:
    """The thumbnails of `images`, from whichever folder has them, within the page's budget."""
    found: dict[str, str] = {}
    for side in sides:
        left = MAX_BYTES - sum(map(len, found.values())) * 3 // 4
        missing = [name for name in images if name not in found]
        found |= read_thumbnails(side.at, missing, left)
    return found


def _item(rows: tuple[AnswerRow, ...], place: dict[str, int], *, same: bool) -> dict[str, Any]:
    """One gallery entry: an image with one row, or with the rows of both sides, which may agree."""
    first = rows[0]
    return {
        "id": first["id"],
        "unit": first["unit"],
        "thumb": place.get(first["image"], -1),
        "width": first["width"],
        "height": first["height"],
        "question_id": first["question_id"],
        "same": same,
        "sides": [_row(row) for row in rows],
    }


def _row(row: AnswerRow) -> dict[str, Any]:
    names = ("status", "error_code", "error_message", "finish_reason", "prompt", "answer_tokens",
             "prompt_tokens")  # fmt: skip
    logprob = row["mean_logprob"]
    turns = row["turns"] or [{"question": None, "answer": row["answer"]}]
    return {
        **{name: row[name] for name in names},
        "mean_logprob": round(logprob, 4)
        if logprob is not None and math.isfinite(logprob)
        else None,
        "turns": [{"question": t["question"], "answer": t["answer"]} for t in turns],
    }


def _default_target(sides: list[Side]) -> Location:
    name = "_report.html" if len(sides) == 1 else f"_compare-{sides[1].name}.html"
    return sides[0].at.child(name)


def _policy(style: str, script: str) -> str:
    """A policy that lets this style and this script run, and nothing be loaded."""

    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {allowed(style)}; "
        f"script-src {allowed(script)}; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (files("llava_batch.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "amount": amount, "duration": duration, "percent": percent, "ticks": ticks,
    }  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False, "allow_nan": False, "separators": (",", ":"),
    }  # fmt: skip
    return environment.from_string(_asset("page.html.j2"))
