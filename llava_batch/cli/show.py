"""A few rows of an output folder as a table on a terminal.

Reads no further than it prints. What rows say is never taken for markup or control characters.
"""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_batch.answers.folder import open_answers
from llava_batch.errors import UsageError

COLUMNS = ("id", "turns", "answer", "finish_reason", "mean_logprob", "status", "error_code",
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
    missing = [c for c in COLUMNS if c not in answers.schema.names]
    if missing:
        raise UsageError(f"{out}: is no table of answers (without {', '.join(missing)})")
    rows = (r for r in answers.rows(COLUMNS) if not errors or r["status"] == "error")
    shown = list(islice(rows, num_rows))
    if not shown:
        print(f"{answers.location.shown}: no row{' is in error' if errors else 's'}")
        return
    Console().print(sample_table(shown))


def sample_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Answer rows as a table: id, question, answer, how it ended, mean log-probability.

    A question that all rows share stands above the table, not in each row.
    """
    shared = {_question(row) for row in rows} - {""}
    title = Text.assemble("Asked: ", _plain(shared.pop())) if len(shared) == 1 else None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left",
                  title_style="")  # fmt: skip
    table.add_column("id", overflow="fold", min_width=12, style="dim")
    if title is None:
        table.add_column("question", overflow="fold")
    table.add_column("answer", overflow="fold", min_width=20)
    table.add_column("finish", no_wrap=True)
    table.add_column("logprob", justify="right", no_wrap=True)
    for row in rows:
        logprob = row.get("mean_logprob")
        table.add_row(
            _plain(row["id"]),
            *([_plain(_question(row))] if title is None else []),
            _said(row),
            _plain(row.get("finish_reason") or row["status"]),
            Text("" if logprob is None else f"{logprob:.2f}"),
        )
    return table


def _question(row: dict[str, Any]) -> str:
    turns = row.get("turns") or []
    return (turns[-1]["question"] or "") if turns else ""


def _said(row: dict[str, Any]) -> Text:
    """The answer; of a row in error its code and message, in red."""
    if row["status"] == "ok":
        return _plain(row["answer"] or "")
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
