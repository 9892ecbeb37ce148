"""A folder of answers read back: which of its tables are answers, of whatever job's output it is."""

from pathlib import Path

import pytest

from llava_batch.answers.folder import open_answers
from llava_batch.cli.jobs import app, exit_status
from llava_batch.cli.terminal import refuse_mixing
from llava_batch.errors import UsageError
from llava_batch.instruct.conversations import write_instructions
from llava_batch.prompts.recipe import load_recipe
from llava_batch.report import write_report
from tests.answer_folder import bad, good, write_folder

ROWS = [good("a", "A cat."), bad("b", "image_missing", "it is gone")]


@pytest.fixture
def ins(tmp_path: Path) -> Path:
    """What `instruct` leaves."""
    answers = write_folder(tmp_path / "ins" / "answers", ROWS, run={})
    (tmp_path / "ins" / "answers" / "_manifest").mkdir()
    write_instructions(answers, str(tmp_path / "ins" / "instructions"), load_recipe("conversation"))
    return tmp_path / "ins"


def test_what_instruct_made_is_opened_as_its_answers(ins: Path) -> None:
    # Once `show` read the answers of two kinds of tables, and `report` was refused.
    assert open_answers(str(ins)).paths == (str(ins / "answers" / "00000.parquet"),)
    assert [row["id"] for row in open_answers(str(ins)).rows()] == ["00000/a", "00000/b"]


@pytest.mark.parametrize("command", ["report", "show"])
def test_report_and_show_take_what_instruct_made(
    ins: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert exit_status(app, [command, str(ins)], "llava-batch") == 0
    assert capsys.readouterr().err == ""
    if command == "report":
        assert (ins / "answers" / "_report.html").is_file()


def test_instructions_alone_are_no_answers_and_it_says_which_folder_is(ins: Path) -> None:
    with pytest.raises(UsageError, match="holds instructions; give the folder of the answers"):
        write_report([str(ins / "instructions")])
    assert exit_status(app, ["show", str(ins / "instructions")], "llava-batch") == 2


def test_a_folder_of_answers_with_units_in_a_folder_called_answers_is_read_whole(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    for part in ("answers", "instructions"):
        write_folder(out / part, ROWS)
        (out / "_manifest" / part).mkdir(parents=True)
    assert len(open_answers(str(out)).paths) == 2


def test_answers_and_conversations_are_not_begun_in_one_folder(ins: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "_manifest").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds the answers of caption or vqa; give another"):
        refuse_mixing(str(tmp_path / "out"), instruct=True)
    with pytest.raises(UsageError, match="holds what instruct made; give another"):
        refuse_mixing(str(ins), instruct=False)
    for folder, instruct in ((tmp_path / "out", False), (ins, True), (tmp_path / "new", True),
                             (tmp_path / "new", False), (ins / "answers", False)):  # fmt: skip
        refuse_mixing(str(folder), instruct=instruct)
    (ins / "_manifest").mkdir()  # both, as earlier versions let it be: neither is lost
    refuse_mixing(str(ins), instruct=True)
    refuse_mixing(str(ins), instruct=False)
