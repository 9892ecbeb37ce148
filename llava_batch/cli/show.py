"""A few rows of an output folder as a table on a terminal.

Reads no further than one row behind what it prints. What rows say is never taken for markup or control characters.
"""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from llava_batch.answers.folder import open_answers
from llava_batch.errors import UsageError

COLUMNS = ("id", "turns", "status", "error_code",
           "error_message")  # fmt: skip
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal could obey, and marks that reorder the text around them."""


def show(out: str, *, errors: bool = False, num_rows: int = 10) -> None:
    """Print the first rows of the answers in `out`, or the first of those in error.

    Raises:
        UsageError: no answers there, or `num_rows` under 1.
    """
    if num_rows < 1:
        raise UsageError(f"-n {num_rows}: give at least 1")
    answers = open_answers(out)
    rows = (r for r in answers.rows(COLUMNS) if not errors or r["status"] == "error")
    shown = list(islice(rows, num_rows))
    if not shown:
        print(f"{answers.location.shown}: no row{' is in error' if errors else 's'}")
        return
    console = Console()
    console.print(sample_table(shown, console.width))
    if next(rows, None) is not None:
        which = "rows in error" if errors else "rows"
        console.print(f"The first {len(shown)} {which}; more with -n.", style="dim")


def sample_table(rows: Sequence[dict[str, Any]], width: int) -> Group:
    """Answer rows as a table of at most `width` characters: id, question, answer, how it ended, mean
    log-probability; a dialogue has these for each of its turns, below each other.

    A question that all rows share stands above the table, not in each row; where none was asked (of a
    broken image) there is no column of them.
    """
    shared = {tuple(_questions(row)) for row in rows} - {()}
    beside = len(shared) > 1
    above = [_plain("Asked: " + ", then: ".join(shared.pop()))] if len(shared) == 1 else []
    id_width = max(_ID, width - _ENDING - _GAPS - _ANSWER - (_QUESTION if beside else 0))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True, style="dim")
    if beside:
        table.add_column("question", overflow="fold")
    table.add_column("answer", overflow="fold")
    table.add_column("finish", no_wrap=True)
    table.add_column("logprob", justify="right", no_wrap=True)
    for row in rows:
        name = _broken(_clean(row["id"]), id_width)
        for turn in _turns(row):
            logprob = turn.get("mean_logprob")
            table.add_row(
                Text(name),
                *([_plain(turn["question"] or "")] if beside else []),
                _said(row, turn),
                _plain(turn.get("finish_reason") or row["status"]),
                Text("" if logprob is None else f"{logprob:z.2f}"),
            )
            name = ""
    return Group(*above, table)


_EMPTY = "(empty)"
"""An answer of no text, which a model may give: a blank line would look like a fault of the table."""
_ID, _QUESTION, _ANSWER, _ENDING, _GAPS = 14, 12, 20, 13, 14
"""Characters that these have at least: the columns by name, the two last ones, all gaps between."""


def _broken(name: str, width: int) -> str:
    """`name` in lines of at most `width` characters, broken behind a slash where there is one."""
    lines = [""]
    for part in re.findall(r"[^/]*/|[^/]+", name):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1:] = chop_cells(lines[-1] + part, width)
    return "\n".join(lines)


def _questions(row: dict[str, Any]) -> list[str]:
    return [turn["question"] for turn in row.get("turns") or [] if turn["question"]]


def _turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What gets a line of its own: each turn; of a row in error all that was asked, together."""
    if row["status"] == "ok" and row["turns"]:
        return list(row["turns"])
    return [{"question": "\n".join(_questions(row))}]


def _said(row: dict[str, Any], turn: dict[str, Any]) -> Text:
    """The turn's answer; of a row in error its code and message, in red."""
    if row["status"] == "ok":
        return _plain(turn.get("answer") or _EMPTY)
    return Text.assemble(
        (_clean(row.get("error_code") or "unknown"), "red"),
        "  ",
        _clean(row.get("error_message") or ""),
    )


def _plain(text: str) -> Text:
    return Text(_clean(text))


def _clean(text: str) -> str:
    """`text` in which each character that a terminal would obey is shown as its code."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\t", " "))
