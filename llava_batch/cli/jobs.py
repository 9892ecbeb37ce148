"""The command lines, derived from `Job`: one flag for each field, grouped as the fields are.

`caption` and `vqa` are the same run; each shows the flags that belong to it first.
"""

import gc
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from typer import Abort, BadParameter
from typer.exceptions import TyperException

from llava_batch.cli.change import app as change_app
from llava_batch.cli.look import app as look_app
from llava_batch.cli.score import app as score_app
from llava_batch.cli.spread import SpreadLists
from llava_batch.errors import LlavaBatchError, RunFailed, UsageError
from llava_batch.job import Job, flag_name, job_fields
from llava_batch.version import __version__

_EPILOG = (
    "Exit status: 0 done; 2 cannot run as asked; 3 ran, but too many rows in error, units left open, "
    "or no question joined an image; 130 stopped by Ctrl-C or SIGTERM, finished units are committed."
)


def _command(doc: str, run: Callable[..., object], *own: inspect.Parameter) -> Callable[..., None]:
    """A typer command with a parameter for each field of `Job` and those of its `own`."""
    own_names = [parameter.name for parameter in own]

    def command(**flags: Any) -> None:
        beside = {name: flags.pop(name) for name in own_names}
        run(Job(**_as_fields(flags)), **beside)

    hints = get_type_hints(Job)
    fields = [_parameter(f.name, hints[f.name], f) for f in job_fields()]
    command.__signature__ = inspect.Signature([*fields, *own])  # type: ignore[attr-defined]
    command.__doc__ = doc
    return command


def _parameter(name: str, hint: Any, field: Any) -> inspect.Parameter:
    several = hint == tuple[str, ...]
    default = field.default
    names = [flag_name(name)]
    if hint is bool:
        names = [f"{flag_name(name)}/--no-{name.replace('_', '-')}"]
    option = typer.Option(
        *names,
        help=field.metadata["help"],
        rich_help_panel=field.metadata["group"],
        show_default=default not in (None, "", (), False),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if several else default,
        annotation=Annotated[list[str] if several else hint, option],
    )


def _as_fields(flags: dict[str, Any]) -> dict[str, Any]:
    """Command-line values as `Job` has them."""
    fields = {n: tuple(v) if isinstance(v, list) else v for n, v in flags.items()}
    fields["choices"] = tuple(c.strip() for text in fields["choices"] for c in text.split(","))
    return fields


def _run(job: Job) -> None:
    from llava_batch.cli.terminal import run_and_tell

    run_and_tell(job)


def _vqa(job: Job) -> None:
    _refuse_no_question(job)
    _run(job)


def _refuse_no_question(job: Job) -> None:
    if not job.asks_by or "prompt" in job.asks_by:
        raise UsageError("no question was given; give --question TEXT, --question-column NAME or "
                         "--questions FILE (caption asks one --prompt of every image)")  # fmt: skip


def _instruct(job: Job, export: list[str]) -> None:
    from llava_batch.cli.instruct import run_instruct

    run_instruct(job, export)


_EXPORT = inspect.Parameter(
    "export",
    inspect.Parameter.KEYWORD_ONLY,
    default=[],
    annotation=Annotated[
        list[str],
        typer.Option(help="llava, webdataset or huggingface; repeatable.", show_default=False),
    ],
)


def _estimate(job: Job, **how: Any) -> None:
    from llava_batch.cli.estimate import estimate_and_tell

    estimate_and_tell(job, as_json=how.pop("json"), **how)


def _estimate_vqa(job: Job, **how: Any) -> None:
    _refuse_no_question(job)
    _estimate(job, **how)


def _estimate_instruct(job: Job, **how: Any) -> None:
    from llava_batch.cli.instruct import of_answers

    _estimate(of_answers(job), **how)


def _own(name: str, hint: Any, default: Any, help: str) -> inspect.Parameter:
    """A flag of `estimate` alone."""
    option = typer.Option(f"--{name.replace('_', '-')}", help=help, rich_help_panel="Estimate",
                          show_default=bool(default))  # fmt: skip
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
    )


_HOW = (
    _own("pilot", int, 64, "Images that are answered to estimate by, at least."),
    _own("pilot_seed", int, 0, "Seed by which they are drawn."),
    _own("price_per_hour", float | None, None, "Price of one worker's hour, for the money."),
    _own("json", bool, False, "The figures as JSON."),
)

COMMANDS: dict[str, Callable[..., None]] = {
    "caption": _command("Describe every image of a corpus with one prompt.", _run),
    "vqa": _command("Ask questions of every image of a corpus.", _vqa),
    "instruct": _command("Make instruction data from a corpus.", _instruct, _EXPORT),
}


ESTIMATES: dict[str, Callable[..., None]] = {
    "caption": _command("Estimate what `caption` would take, with the same flags.", _estimate, *_HOW),
    "vqa": _command("Estimate what `vqa` would take, with the same flags.", _estimate_vqa, *_HOW),
    "instruct": _command("Estimate what `instruct` would take, with the same flags.",
                         _estimate_instruct, *_HOW),
}  # fmt: skip


def _estimate_app() -> typer.Typer:
    made = typer.Typer(
        help="Say what a job would take: images, rows, tokens, hours, money, each with its bounds.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for name, command in ESTIMATES.items():
        made.command(name, cls=SpreadLists)(command)
    return made


def _app(names: Sequence[str]) -> typer.Typer:
    made = typer.Typer(
        help="Offline captioning and visual question answering over image corpora with LLaVA.",
        no_args_is_help=len(names) > 1,
        add_completion=len(names) > 1,
        pretty_exceptions_enable=False,
    )
    for name in names:
        made.command(name, cls=SpreadLists, epilog=_EPILOG)(COMMANDS[name])
    return made


app = _app(list(COMMANDS))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"llava-batch {__version__}")
        raise typer.Exit


@app.callback()
def _console_script(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What stands before a command."""


app.add_typer(_estimate_app(), name="estimate")
app.add_typer(score_app)
app.add_typer(look_app)
app.add_typer(change_app)


def main() -> None:
    """The console script `llava-batch`."""
    _exit(exit_status(app, sys.argv[1:], "llava-batch"))


def job_main(name: str) -> None:
    """One command as a script of its own: what `jobs/caption.py` and those beside it call."""
    job = score_app if name == "score" else _app([name])
    _exit(exit_status(job, sys.argv[1:], f"jobs/{name}.py"))


def _exit(status: int) -> NoReturn:
    gc.freeze()  # the interpreter's end is then 0.2 s instead of 1.2 s
    sys.exit(status)


def exit_status(app: typer.Typer, args: list[str], prog: str) -> int:
    """Run `app`; an error is one line on stderr that says what, the value, and what to do."""
    try:
        status = app(args, prog_name=prog, standalone_mode=False) or 0
        # typer itself turns Ctrl-C into an exit status.
        return _stopped(prog) if status == _INTERRUPTED else status
    except TyperException as error:
        message = _message(error)
        if not message:  # no command at all: its help was printed
            return 2
        stop = "" if message.endswith((".", "?")) else "."
        return _tell(prog, f"{message}{stop} See {_where(error, prog)} --help.", 2)
    except UsageError as error:
        return _tell(prog, str(error), error.exit_status)
    except RunFailed as error:
        return _tell(prog, str(error), error.exit_status)
    except LlavaBatchError as error:
        return _tell(prog, str(error), 1)
    except (KeyboardInterrupt, Abort):
        return _stopped(prog)


_INTERRUPTED = 130


def _stopped(prog: str) -> int:
    message = "stopped; finished units are committed, run it again to resume"
    return _tell(prog, message, _INTERRUPTED)


def _where(error: TyperException, prog: str) -> str:
    """The command that was called wrongly: `llava-batch report`, or the script itself."""
    context = getattr(error, "ctx", None)
    return prog if context is None else context.command_path


def _message(error: TyperException) -> str:
    """typer's message; where a value is of the wrong type, with the value, which typer leaves out."""
    from pydantic import ValidationError

    if isinstance(error, BadParameter) and isinstance(error.__cause__, ValidationError):
        flag = error.param.opts[0] if error.param else ""
        return f"{flag} {error.__cause__.errors()[0]['input']}: {error.message}"
    message = error.format_message()
    context = getattr(error, "ctx", None)
    called = context.command.name if context else None
    if "unexpected extra argument" in message and called in COMMANDS:
        return f"{message.rstrip('.')}: what is read is given as --input PATH"
    return message


def _tell(prog: str, message: str, status: int) -> int:
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return status
