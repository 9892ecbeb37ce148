"""The command lines: a flag for each field, and one line for each mistake."""

import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from llava_batch.cli.jobs import COMMANDS, _app, app, exit_status
from llava_batch.errors import LlavaBatchError, OutputConflict, RunFailed
from llava_batch.job import Job, flag_name, job_fields
from llava_batch.version import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture
def given(monkeypatch) -> list[Job]:
    """The jobs that commands were given, instead of running them."""
    jobs: list[Job] = []
    console = types.ModuleType("llava_batch.cli.terminal")
    console.run_and_tell = jobs.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llava_batch.cli.terminal", console)
    return jobs


def run(*args: str, name: str = "caption") -> int:
    return exit_status(_app([name]), list(args), f"jobs/{name}.py")


def told(capsys) -> str:
    """The one line on stderr."""
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1 and out.err.endswith("\n"), out.err
    return out.err.strip()


def test_with_no_flag_at_all_the_job_is_the_default(given) -> None:
    assert run() == 0
    assert given == [Job()]


SOURCES = {"prompt", "question", "question_column", "questions", "recipe"}


@pytest.mark.parametrize("name", ["caption", "vqa"])
def test_every_field_has_a_flag_that_sets_it(given, name: str) -> None:
    values: dict[type, Any] = {str: "x", int: 3, float: 0.5, bool: True}
    special: dict[str, Any] = {
        "format": "arrow", "dtype": "bfloat16", "quantization": "nf4", "attention": "torch",
        "image_aspect": "crop", "on_change": "keep", "stall_timeout_s": 5.0, "choices": ("x", "y"), "partition": ("dt=x",),
    }  # fmt: skip
    # Each in a job of its own: some exclude each other, some need another.
    for field in job_fields():
        if name == "vqa" and field.name == "prompt":
            continue
        kind = next(k for k in (bool, int, float, str) if k.__name__ in str(field.type))
        value = special.get(field.name, values[kind])
        if "tuple" in str(field.type) and not isinstance(value, tuple):
            value = (value,)
        beside: dict[str, Any] = {"temperature": 0.5} if field.name == "num_samples" else {}
        asks = name == "vqa" or field.name in ("choices", "dialogue")
        if asks and field.name not in SOURCES:
            beside |= {"question_column": "q"}
        args = [flag_name(field.name)]
        args += [] if kind is bool else map(str, value if isinstance(value, tuple) else [value])
        for other, setting in beside.items():
            args += [flag_name(other), str(setting)]
        assert run(*args, name=name) == 0, field.name
        assert given[-1] == Job(**{field.name: value}, **beside), field.name


@pytest.mark.parametrize("name", ["caption", "vqa", "instruct"])
def test_help_lists_every_flag_with_its_sentence(capsys, monkeypatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERM", "dumb")
    assert run("--help", name=name) == 0
    shown = capsys.readouterr().out
    for field in job_fields():
        assert re.search(rf"{flag_name(field.name)}\b", shown), field.name
        assert field.metadata["help"] in " ".join(shown.split()), field.name
        assert field.metadata["group"] in shown
    said = " ".join(shown.split())
    for status in ("0 done;", "2 cannot run as asked;", "3 ran, but", "130 stopped by Ctrl-C"):
        assert status in said[said.index("Exit status: ") :]


def test_help_shows_the_defaults_that_are_numbers_or_words(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    run("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Most tokens in one answer. [default: 128]" in shown
    assert "[default: None]" not in shown


# Lists


@pytest.mark.parametrize(
    "args",
    [
        ["--input", "a", "b", "c", "--output", "o"],
        ["--output", "o", "--input", "a", "b", "c"],
        ["--input", "a", "--input", "b", "c", "--output", "o"],
        ["--input", "a", "--input", "b", "--output", "o", "--input", "c"],
    ],
)
def test_a_repeatable_flag_takes_several_values_or_is_repeated(given, args) -> None:
    assert run(*args) == 0
    assert given == [Job(input=("a", "b", "c"), output="o")]


def test_values_may_begin_with_a_dash_and_hold_an_equals_sign(given) -> None:
    # Once taken for an unknown flag.
    assert run("--question", "-5 or 5?", "a=b?", "--seed", "-1", "--stop", "-") == 0
    assert given == [Job(question=("-5 or 5?", "a=b?"), seed=-1, stop=("-",))]


def test_a_value_too_many_behind_a_plain_flag_is_refused(given, capsys) -> None:
    assert run("--output", "o", "stray") == 2
    assert "stray" in told(capsys)
    assert given == []


def test_an_input_without_its_flag_is_told_the_flag(given, capsys) -> None:
    # `Got unexpected extra argument (photos/)`, and nothing of --input.
    assert run("photos/", "--output", "o") == 2
    assert "(photos/): what is read is given as --input PATH. See jobs/caption.py --help." in told(
        capsys
    )


def test_choices_are_split_at_commas(given) -> None:
    assert run("--question", "Is it?", "--choices", "yes, no,maybe so") == 0
    assert given[0].choices == ("yes", "no", "maybe so")


def test_a_switch_can_be_turned_off_again(given) -> None:
    assert run("--overwrite", "--no-overwrite") == 0
    assert given == [Job()]


# Mistakes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--max-new-tokens", "many"], "many"),
        (["--max-new-tokens", "1.5"], "1.5"),
        (["--max-new-tokens"], "--max-new-tokens"),
        (["--temperature", "warm"], "warm"),
        (["--overwrite=yes"], "--overwrite"),
        (["--format", "csv"], "--format csv: give one of parquet, arrow"),
        (["--dtype", "float8"], "--dtype float8: give one of"),
        (["--limit", "0"], "--limit 0: give at least 1"),
        (["--top-p", "nan"], "--top-p nan: give a finite number"),
        (["--question", "a", "--question-column", "q"], "drop one"),
        (["--choices", "a,"], "--choices a,: a choice is empty"),
        (["--num-samples", "3"], "samples need --temperature over 0"),
        (["--prompt", "a", "--question", "b"], "--question and --prompt were both given"),
        (["--question", ""], "--question '': it is empty, give a value"),
        (["--dialogue"], "--dialogue: there is no second question; give --question twice"),
        (["--choices", "yes,no"], "--choices yes,no: nothing is asked that they answer"),
    ],
)
def test_a_wrong_flag_is_one_line_with_the_value_and_status_2(given, capsys, args, said) -> None:
    assert run(*args) == 2
    line = told(capsys)
    assert line.startswith("jobs/caption.py: ") and said in line
    assert given == []


@pytest.mark.parametrize(
    "args",
    [[], ["--prompt", "Is it a cat?"], ["--preset", "vqav2"], ["--input", "a", "--output", "b"]],
)
def test_vqa_without_a_question_is_refused(given, capsys, args) -> None:
    # Once it captioned.
    assert run(*args, name="vqa") == 2
    line = told(capsys)
    assert line.startswith("jobs/vqa.py: no question was given; give --question TEXT")
    assert given == []


@pytest.mark.parametrize(
    "args",
    [
        ["--question", "Who?"],
        ["--question-column", "q"],
        ["--questions", "q.jsonl"],
        ["--recipe", "detail"],
    ],
)
def test_vqa_takes_its_question_from_any_place(given, args) -> None:
    assert run(*args, name="vqa") == 0
    assert len(given) == 1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--promt", "--prompt"), ("--max-new-token", "--max-new-tokens"), ("--ouput", "--output")],
)
def test_an_unknown_flag_is_told_the_one_that_was_meant(given, capsys, typed, meant) -> None:
    assert run(typed, "x") == 2
    line = told(capsys)
    assert typed in line and f"{meant}" in line.replace(typed, "", 1)
    assert "jobs/caption.py --help" in line


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OutputConflict("--prompt differs\n from before"), 2),
        (RunFailed("5 of 6 rows in error"), 3),
        (LlavaBatchError("something else"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_how_a_run_ends_is_its_exit_status(monkeypatch, capsys, error, status) -> None:
    console = types.ModuleType("llava_batch.cli.terminal")

    def fail(job: Job) -> None:
        raise error

    console.run_and_tell = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llava_batch.cli.terminal", console)
    assert run() == status
    assert told(capsys).startswith("jobs/caption.py: ")


def test_a_bug_of_ours_is_not_dressed_as_a_mistake_of_the_users(monkeypatch) -> None:
    console = types.ModuleType("llava_batch.cli.terminal")

    def fail(job: Job) -> None:
        raise ZeroDivisionError

    console.run_and_tell = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llava_batch.cli.terminal", console)
    with pytest.raises(ZeroDivisionError):
        run()


# Scripts


def test_the_version_is_printed(capsys) -> None:
    assert exit_status(app, ["--version"], "llava-batch") == 0
    assert capsys.readouterr().out == f"llava-batch {__version__}\n"


def test_no_command_at_all_prints_the_help_and_no_broken_line(capsys) -> None:
    # Once `llava-batch:  See llava-batch --help.` stood behind the help.
    assert exit_status(app, [], "llava-batch") == 2
    said = capsys.readouterr()
    assert "Commands" in said.out and said.err == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["report"], "llava-batch: Missing argument 'OUT'. See llava-batch report --help."),
        (["caption", "--inptu"], "See llava-batch caption --help."),
    ],
)
def test_a_wrong_call_names_the_help_of_its_own_command(args, said, capsys) -> None:
    # It named that of the console script, which knows none of the command's flags.
    assert exit_status(app, args, "llava-batch") == 2
    assert said in capsys.readouterr().err


def test_the_console_script_has_every_command(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_status(app, ["--help"], "llava-batch") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*COMMANDS, "score"))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_an_executable_job(name: str) -> None:
    script = ROOT / "jobs" / f"{name}.py"
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith('#!/usr/bin/env python3\n"""')
    assert f'job_main("{name}")' in script.read_text()


def test_a_job_run_as_a_script_ends_with_the_status_and_no_traceback(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "jobs/caption.py"), "--format", "csv"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr == "jobs/caption.py: --format csv: give one of parquet, arrow\n"
    assert list(tmp_path.iterdir()) == []
