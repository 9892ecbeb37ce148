"""The command `score`: a benchmark's figures, to stdout as JSON."""

import json
from typing import Annotated

import typer

from llava_batch.prompts.presets import PRESETS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(name="score")
def score_command(
    answers: Annotated[str, typer.Option(help="Output folder of a run (or LLaVA's .jsonl).")],
    benchmark: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")],
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
    from llava_batch.score.score import score

    result = score(
        answers=answers,
        benchmark=benchmark,
        annotations=annotations,
        export=export,
        output=output,
        only_answered=only_answered,
    )
    print(json.dumps(result, indent=2))
