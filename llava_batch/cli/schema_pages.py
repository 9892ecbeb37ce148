"""The pages of `docs/tables`, made from the published schemas and from the row errors' sentences.

    python -m llava_batch.cli.schema_pages [FOLDER]

writes them all. What they say is said in `schemas/*.json`, `job.py` and `errors.py`, and nowhere else.
"""

import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from llava_batch.driver.run_schema import keys, run_schema
from llava_batch.errors import RowError
from llava_batch.tables import RUN, load_contract, schema_names

FOLDER = "docs/tables"
_MADE = (
    "<!-- Made by `python -m llava_batch.cli.schema_pages`; change the schema, not this page. -->"
)


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    tables = {f"{name}.md": contract_page(name) for name in (*schema_names(), RUN)}
    return tables | {"errors.md": errors_page()}


def contract_page(name: str) -> str:
    """A contract in Markdown."""
    contract = load_contract(name)
    rows = [
        f"| `{named}` | `{kind}` | {null} | {_cell(what)} |"
        for named, kind, null, what in _lines(name)
    ]
    return "\n".join(
        [
            f"# {contract.get('title', name)}",
            "",
            _MADE,
            "",
            contract["description"],
            "",
            f"Version {contract['version']}.",
            "",
            f"| {_head(name)} | type | null | |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def contract_as_json(name: str) -> dict[str, Any]:
    """What a program reads: of `_run.json` the JSON Schema, with every setting."""
    return run_schema() if name == RUN else load_contract(name)


def _head(name: str) -> str:
    return "key" if name == RUN else "column"


def _lines(name: str) -> list[tuple[str, str, str, str]]:
    """(name, type, whether null, sentence) of each column, or of each key of `_run.json`."""
    if name == RUN:
        return [
            (path, _json_type(inner), "yes" if "null" in inner["type"] else "no", inner["description"])
            for path, inner in keys(run_schema())
        ]  # fmt: skip
    return [
        (f["name"], f["type"], "yes" if f["nullable"] else "no", f["description"])
        for f in load_contract(name)["fields"]
    ]


def _json_type(schema: dict[str, Any]) -> str:
    """`array<string>`, `object<integer>`: a JSON type, null left out, and the type of what is in it."""
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    kind = next(name for name in names if name != "null")
    inner = schema.get("items") or schema.get("additionalProperties")
    return f"{kind}<{_json_type(inner)}>" if inner else kind


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


def schema_table(name: str) -> Table:
    """A contract for a terminal."""
    contract = load_contract(name)
    title = Text(f"{contract.get('title', name)}, version {contract['version']}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left",
                  caption=Text(contract["description"]), caption_justify="left")  # fmt: skip
    table.add_column(_head(name), no_wrap=True)
    table.add_column("type", overflow="fold", ratio=2)
    table.add_column("null")
    table.add_column("", overflow="fold", ratio=4)
    for line in _lines(name):
        table.add_row(*map(Text, line))
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


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for page in write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER)):
        print(page)
