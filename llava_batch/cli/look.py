"""The commands that look at things and change nothing: report, show, inspect, schema.

`app` is mounted into the console script; errors leave as `LlavaBatchError`, for it to print. What
the commands need is imported when they run, so that `--help` and completion are quick.
"""

import json
import sys
from shutil import get_terminal_size
from textwrap import TextWrapper
from typing import Annotated

import typer

app = typer.Typer(
    help="Look at a run's answers and at what could be answered.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def report(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a run.")],
    second: Annotated[
        str | None, typer.Argument(metavar="[OUT2]", help="A second one, to compare it with.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="File or URI of the page (default: OUT/_report.html)."),
    ] = None,
) -> None:
    """Write the report about one output folder, or about two side by side."""
    from llava_batch.report import write_report

    print(write_report([out] if second is None else [out, second], output))


@app.command()
def show(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a run.")],
    errors: Annotated[bool, typer.Option("--errors", help="Only the rows in error.")] = False,
    num_rows: Annotated[int, typer.Option("--num-rows", "-n", help="Most rows to print.")] = 10,
) -> None:
    """Print a few answers as a table."""
    from llava_batch.cli.show import show as show_rows

    show_rows(out, errors=errors, num_rows=num_rows)


@app.command()
def inspect(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="As `--input` of a run takes them.")
    ],
    sample: Annotated[int, typer.Option(help="Most images to decode.")] = 200,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Fetch the sample's images of the web too.")
    ] = False,
) -> None:
    """Say what is in shards or folders: kind, columns, rows, image sizes, broken images in a sample."""
    from llava_batch.cli.inspect_inputs import inspect as inspect_inputs
    from llava_batch.cli.inspect_inputs import told

    kinds = inspect_inputs(inputs, sample, allow_http=allow_http)
    for found in kinds:
        print("\n".join(_wrapped(told(found))))
    if not kinds:
        print("nothing there to read: an empty folder")


def _wrapped(lines: list[str]) -> list[str]:
    """The lines broken between words at the terminal's edge; in a pipe or a file, as they are."""
    if not sys.stdout.isatty():
        return lines
    fill = TextWrapper(
        width=get_terminal_size().columns,
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [part for line in lines for part in fill.wrap(line)]


@app.command()
def schema(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="answers, images, questions or instructions; run for _run.json."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="The contract as JSON.")] = False,
) -> None:
    """Print the contract of a table or of _run.json: each column's or key's name, type and meaning."""
    from llava_batch.cli.schema_pages import contract_as_json, schema_table

    if as_json:
        print(json.dumps(contract_as_json(name), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(schema_table(name))
