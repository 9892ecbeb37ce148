"""What is said of settings that differ from those that a folder's answers were made under."""

from pathlib import Path
from typing import Any

from llava_batch.checkpoint import Checkpoint
from llava_batch.driver.same_run import answer_settings, changes
from llava_batch.driver.settle import settle
from llava_batch.job import Job

DEMO = Checkpoint.find(Job())


def settings(**how: Any) -> dict[str, Any]:
    return answer_settings(settle(Job(**how)), DEMO)


def test_a_file_of_other_content_is_named(tmp_path: Path) -> None:
    # `--questions was '3f0a…', is '9b41…'`.
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("1")
    two.write_text("2")
    held = settings(questions=str(one))
    assert changes(held, settings(questions=str(two))) == [
        f"--questions {two}: other content than {one}"
    ]
    one.write_text("1 and more")
    now = settings(questions=str(one))
    assert changes(held, now) == [f"--questions {one}: other content than what was given then"]
    older = {name: value for name, value in held.items() if name != "questions_name"}
    assert changes(older, now) == [f"--questions {one}: other content than what was given then"]


def test_a_file_by_another_name_is_the_same_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("1")
    two.write_text("1")
    assert changes(settings(questions=str(one)), settings(questions=str(two))) == []


def test_a_template_and_a_recipe_are_named_and_not_printed(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    assert changes(settings(), settings(template=str(template))) == [
        f"--template was 'auto', is {template}"
    ]
    (line,) = changes(settings(recipe="detail"), settings(recipe="detail") | {"recipe": "{}"})
    assert line == "--recipe detail: other content than what was given then"


def test_another_preset_is_said_by_itself() -> None:
    # With the four settings that it brings, none of which was given.
    plain, vqav2 = settings(question=("q?",)), settings(question=("q?",), preset="vqav2")
    assert changes(plain, vqav2) == ["--preset was not given, is 'vqav2'"]
    assert changes(vqav2, settings(question=("q?",), preset="scienceqa")) == [
        "--preset was 'vqav2', is 'scienceqa'"
    ]


def test_a_setting_beside_another_preset_is_said_too() -> None:
    given = settings(question=("q?",), preset="vqav2", max_new_tokens=5)
    assert changes(settings(question=("q?",)), given) == [
        "--max-new-tokens was 128, is 5", "--preset was not given, is 'vqav2'"
    ]  # fmt: skip
