"""The command line of `score`: figures to stdout as JSON, an error as one line and status 2."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from llava_batch.errors import LlavaBatchError
from llava_batch.score.annotations import BENCHMARKS
from llava_batch.score.score import score

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(name="score")
def score_command(
    answers: Annotated[str, typer.Option(help="Output folder of a run (or LLaVA's .jsonl).")],
    benchmark: Annotated[str, typer.Option(help=f"One of {', '.join(BENCHMARKS)}.")],
    annotations: Annotated[
        str | None, typer.Option(help="The benchmark's annotation file or folder.")
    ] = None,
    export: Annotated[
        str | None, typer.Option(help="Write what the official evaluator takes to this file.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Write the figures here (default: beside the answers).")
    ] = None,
    only_answered: Annotated[
        bool, typer.Option("--only-answered", help="Leave out questions without an answer.")
    ] = False,
) -> None:
    """Score a run's answers by a benchmark's own metric, and export them for its evaluator."""
    result = score(
        answers=answers,
        benchmark=benchmark,
        annotations=annotations,
        export=export,
        output=output,
        only_answered=only_answered,
    )
    print(json.dumps(result, indent=2))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2 for anything that the user must change)."""
    try:
        status = app(args=None if argv is None else list(argv), standalone_mode=False)
    except LlavaBatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    except Exception as error:
        # Typer's own errors have had click's base class, and then one of typer's.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        print(f"error: {message()}", file=sys.stderr)
        return 2
    return status or 0
