"""The pages of `docs/tables`, made from the published schemas and from the row errors' sentences.

    python -m llava_batch.cli.schema_pages [FOLDER]

writes them all. What they say is said in `schemas/*.json` and `errors.py`, and nowhere else.
"""

import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from llava_batch.errors import RowError
from llava_batch.tables import load_contract, schema_names

FOLDER = "docs/tables"
_MADE = (
    "<!-- Made by `python -m llava_batch.cli.schema_pages`; change the schema, not this page. -->"
)


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    tables = {f"{name}.md": table_page(load_contract(name)) for name in schema_names()}
    return tables | {"errors.md": errors_page()}


def table_page(contract: dict[str, Any]) -> str:
    """A table's contract in Markdown."""
    rows = [
        f"| `{f['name']}` | {_code(f['type'])} | {'yes' if f['nullable'] else 'no'} "
        f"| {_cell(f['description'])} |"
        for f in contract["fields"]
    ]
    return "\n".join(
        [
            f"# {contract['name']}",
            "",
            _MADE,
            "",
            contract["description"],
            "",
            f"Version {contract['version']}.",
            "",
            "| column | type | null | |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def errors_page() -> str:
    """The codes that a row in error can carry, in Markdown."""
    rows = [f"| `{code.value}` | {_cell(code.sentence)} |" for code in RowError]
    return "\n".join(
        [
            "# Row errors",
            "",
            _MADE.replace("the schema", "`errors.py`"),
            "",
            "A bad row is a row of the answers all the same: `status` is `error`, `answer` is null, "
            "`error_code` is one of these and `error_message` says what happened.",
            "",
            "| error_code | |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def schema_table(contract: dict[str, Any]) -> Table:
    """A table's contract for a terminal."""
    title = Text(f"{contract['name']}, version {contract['version']}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left",
                  caption=Text(contract["description"]), caption_justify="left")  # fmt: skip
    table.add_column("column", no_wrap=True)
    table.add_column("type", overflow="fold", ratio=2)
    table.add_column("null")
    table.add_column("", overflow="fold", ratio=4)
    for field in contract["fields"]:
        null = "yes" if field["nullable"] else "no"
        table.add_row(
            Text(field["name"]), Text(field["type"]), null, Text(field["description"])
        )  # fmt: skip
    return table


def write_pages(folder: Path) -> list[Path]:
    """Write every page into `folder`, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages().items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _code(text: str) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for page in write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER)):
        print(page)
