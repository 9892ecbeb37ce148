"""Show and schema: what they print, and what a terminal must never be told by an answer."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from llava_batch.cli.jobs import app, exit_status
from llava_batch.cli.schema_pages import FOLDER, pages
from llava_batch.cli.show import sample_table, show
from llava_batch.driver.run_schema import keys, run_schema
from llava_batch.errors import RowError, UsageError
from llava_batch.tables import load_contract, schema_names
from tests.answer_folder import bad, good, write_folder

ROOT = Path(__file__).parents[2]


def printed(rows: list[dict[str, object]], width: int = 160) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(sample_table(rows, width))
    return stream.getvalue()


def test_rows_are_shown_with_question_answer_and_how_they_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    show(write_folder(tmp_path, [good("a", "A cat."), bad("b", "image_missing", "it is gone")]))
    text = capsys.readouterr().out
    for part in ("00000/a", "Describe the image.", "A cat.", "stop", "-0.25", "it is gone"):
        assert part in text


def test_a_question_that_all_rows_share_is_printed_once() -> None:
    same = printed([good("a", "x"), good("b", "y"), bad("c", "bad_prompt", "z")])
    assert same.count("Describe the image.") == 1 and "Asked:" in same
    several = printed([good("a", "x", "Which?"), good("b", "y", "How?")])
    assert "Which?" in several and "How?" in several and "Asked:" not in several


QUESTIONS = ("How many objects are there in the picture?", "What is it?")


@pytest.mark.parametrize("questions", [QUESTIONS[:1], QUESTIONS])
@pytest.mark.parametrize("width", [72, 80, 100])
def test_a_narrow_terminal_clips_no_figure_and_breaks_no_file_name(
    questions: tuple[str, ...], width: int
) -> None:
    # Once -12.25 was "-12." and 000001.jpg was "00000" above "1.jpg" at 80 columns.
    names = [f"00000{i}.jpg" for i in range(4)]
    rows = [
        good(name, "A large orange star on a black background.", question, mean_logprob=-12.25,
             unit="day1/photos-00000", finish_reason="length")
        for name in names
        for question in questions
    ]  # fmt: skip
    lines = printed(rows, width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("-12.25" in line and "length" in line for line in lines) == len(rows)
    assert all(sum(name in line for line in lines) == len(questions) for name in names)


def test_a_name_too_long_for_its_column_is_folded_and_none_of_it_lost() -> None:
    name = "a-very-long-name-of-a-file-" * 4 + "\u732b" * 30 + ".jpg"
    rows = [good(name, "x " * 40, "Which one of them is it? " * 3), good("b", "y", "Why?")]
    lines = printed(rows, 80).splitlines()[3:]
    shown = "".join(line[:24].strip() for line in lines)
    assert name in shown.replace(" ", "")


def test_a_dialogue_is_shown_with_all_its_questions_and_answers() -> None:
    row = good("a", "Blue.", "What colour is it?")
    row["turns"] = [good("a", "A star.", "Which shape is it?")["turns"][0], *row["turns"]]
    alone = printed([row])
    assert "Asked: Which shape is it?, then: What colour is it?" in alone
    assert "A star." in alone and "Blue." in alone
    beside = printed([row, good("b", "No.", "Is it red?")])
    for part in ("Which shape is it?", "What colour is it?", "A star.", "Blue.", "Is it red?"):
        assert part in beside


def test_only_rows_in_error_or_only_so_many_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [good(f"good{i}", "x") for i in range(30)] + [bad("b", "bad_prompt", "no question")]
    out = write_folder(tmp_path, rows)
    show(out, errors=True)
    assert "good" not in (text := capsys.readouterr().out) and "bad_prompt" in text
    show(out, num_rows=3)
    assert capsys.readouterr().out.count("good") == 3


def test_a_folder_without_errors_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(write_folder(tmp_path, [good("a", "x")]), errors=True)
    assert "no row is in error" in capsys.readouterr().out


def test_where_nothing_was_asked_there_is_no_column_of_questions() -> None:
    # Broken images' rows had an empty one, which took the width that their ids needed.
    text = printed([bad("a", "image_truncated", "it ends early", turns=None)])
    assert "question" not in text and "it ends early" in text


def test_each_turn_of_a_dialogue_stands_beside_its_own_question_and_confidence() -> None:
    # Folded answers of several turns stood in one cell, and nothing told where one began.
    row = good("a", "blue " * 12, "What colour is it, as far as can be seen?", mean_logprob=-1.5)
    first = good("a", "", "Which shape is it?", mean_logprob=-0.001)["turns"][0]
    row["turns"] = [first, *row["turns"]]
    lines = printed([row, good("b", "No.", "Is it red?")], 80).splitlines()
    (shape,) = [line for line in lines if "Which shape" in line]
    (colour,) = [line for line in lines if "What colour" in line]
    assert "(empty)" in shape and shape.split()[-1] == "0.00"
    assert "blue" in colour and colour.split()[-1] == "-1.50" and "00000/a" not in colour


def test_rows_that_are_not_shown_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # `show OUT --errors` of 46 rows in error printed 10, and looked like all of them.
    out = write_folder(tmp_path, [bad(f"{i}", "image_missing", "gone") for i in range(3)])
    show(out, errors=True, num_rows=2)
    assert "The first 2 rows in error; more with -n." in capsys.readouterr().out
    show(out, errors=True, num_rows=3)
    assert "The first" not in capsys.readouterr().out


def test_markup_and_control_characters_of_an_answer_are_printed_as_text() -> None:
    text = printed([good("[red]k", "[bold]x[/bold] \x1b[31m\x07 \u202egnp [/nothing]")])
    assert "[bold]x[/bold]" in text and "[red]k" in text and "[/nothing]" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "\\x1b[31m" in text


def test_an_impossible_number_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="-n 0"):
        show(write_folder(tmp_path, [good("a", "x")]), num_rows=0)


@pytest.mark.parametrize("command", [["show"], ["report"]])
def test_a_folder_without_answers_is_one_line_and_status_2(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(app, [*command, str(tmp_path)], "llava-batch") == 2
    said = capsys.readouterr()
    assert said.out == "" and "holds no answers" in said.err and said.err.count("\n") == 1


def test_report_prints_where_the_page_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_folder(tmp_path / "out", [good("a", "x")])
    target = tmp_path / "elsewhere" / "page.html"
    assert exit_status(app, ["report", out, out, "--output", str(target)], "llava-batch") == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("name", schema_names())
def test_a_schema_is_printed_as_a_table_and_as_json(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_status(app, ["schema", name], "llava-batch") == 0
    table = capsys.readouterr().out
    assert all(field["name"] in table for field in load_contract(name)["fields"])
    assert exit_status(app, ["schema", name, "--json"], "llava-batch") == 0
    assert json.loads(capsys.readouterr().out) == load_contract(name)


def test_the_schema_of_the_run_file_is_printed_as_a_table_and_as_json_schema(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_status(app, ["schema", "run"], "llava-batch") == 0
    table = capsys.readouterr().out
    assert all(name in table for name, _ in keys(run_schema()))
    assert exit_status(app, ["schema", "run", "--json"], "llava-batch") == 0
    assert json.loads(capsys.readouterr().out) == run_schema()


def test_an_unknown_schema_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(app, ["schema", "nothing"], "llava-batch") == 2
    assert "no schema called nothing" in capsys.readouterr().err


def test_the_pages_of_the_tables_say_what_the_schemas_say() -> None:
    folder = ROOT / FOLDER
    held = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    assert held == pages(), "run: python -m llava_batch.cli.schema_pages"


def test_every_column_and_every_code_has_its_line() -> None:
    made = pages()
    for name in schema_names():
        for field in load_contract(name)["fields"]:
            assert f"| `{field['name']}` | `{field['type']}` |" in made[f"{name}.md"]
    assert all(f"| `{code.value}` | {code.sentence} |" in made["errors.md"] for code in RowError)
