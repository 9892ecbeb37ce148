"""The documents say what is there: their code runs, their links and the paths they name lead somewhere."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from llava_batch.driver.summary import Summary
from tests.test_layers import GROUND, PACKAGE, ROOMS

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PYTHON = ROOT / "docs" / "python.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
DOCUMENTS = [ROOT / "README.md", CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
OURS = ("llava_batch/", "tests/", "docs/", "schemas/", "benchmarks/", "examples/", "jobs/")


def links(text: str) -> list[str]:
    """The targets of Markdown's links that lead to a file of ours."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.partition("#")[0] for target in found if "://" not in target]


def named_paths(text: str) -> Iterator[str]:
    """What stands between backticks and is a path of ours."""
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith(OURS) and " " not in code:
            yield code


def tree(text: str) -> Iterator[str]:
    """The paths of the tree of `llava_batch/` in the architecture."""
    block = text[text.index("    llava_batch/\n") :].split("\n\n", 1)[0]
    above: list[str] = []
    for line in block.splitlines():
        indent, name = re.match(r"( +)(\S+)", line).groups()  # type: ignore[union-attr]
        above[len(indent) // 2 - 2 :] = [name]
        yield "".join(above)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def cells(text: str, *, columns: int) -> list[list[str]]:
    """The rows of all tables of so many columns."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|")]  # fmt: skip
    return [row for row in rows if len(row) == columns and set(row[0]) != {"-"}]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_to_a_file_that_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [t for t in links(text) if not (path.parent / t).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_of_ours_that_is_named_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [n for n in named_paths(text) if not list(ROOT.glob(n.rstrip("/")))] == []


def test_what_the_recipes_say_stands_in_a_file_stands_there() -> None:
    text = " ".join(CONTRIBUTING.read_text(encoding="utf-8").split())
    told = re.findall(r"`(\w+)`(?: \([^)]*\))? (?:in|of) `([\w/.]+\.py)`", text)
    told += [(name, path) for path, name in re.findall(r"`([\w/.]+\.py)`: `(\w+)`", text)]
    assert len(told) >= 12
    assert [
        (name, path)
        for name, path in told
        if not re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))
    ] == []


def test_every_document_and_example_is_linked_from_the_readme() -> None:
    linked = {(ROOT / target).resolve() for target in links((ROOT / "README.md").read_text())}
    wanted = {*(ROOT / "examples").glob("*.py"), *(ROOT / "docs").glob("*.md"), CONTRIBUTING}
    assert wanted - linked == set()


def test_the_tree_is_the_package() -> None:
    named = {name.removeprefix("llava_batch/") for name in tree(ARCHITECTURE.read_text())} - {""}
    there = {p.name + "/" * p.is_dir() for p in PACKAGE.iterdir()}
    assert {n for n in named if n.count("/") - n.endswith("/") == 0} == there - {
        "__init__.py", "__pycache__/", "py.typed"
    }  # fmt: skip
    assert [n for n in named if not (PACKAGE / n).exists()] == []
    rooms = {p.name for p in (PACKAGE / "engine").iterdir() if (p / "__init__.py").is_file()}
    assert {n for n in named if n.startswith("engine/") and n != "engine/"} == {
        f"engine/{room}/" for room in rooms
    }


def test_the_rule_is_the_one_that_is_tested() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    told = {
        room.split(" ")[0]: {r for r in may.split(", ") if r in ROOMS}
        for rooms, may in cells(text, columns=2)[1:]
        for room in rooms.split(", ")
    }
    assert told == {room: may - {"ground"} for room, may in ROOMS.items() if room != "ground"}
    rule = text.partition("The ground is")[2].partition("every room")[0]
    assert set(re.findall(r"`(\w+)`", rule)) == GROUND
    assert {room for room, may in ROOMS.items() if "ground" not in may} == {
        "ground", "engine", "demo"
    }  # fmt: skip


def test_a_rows_way_names_functions_that_stand_where_it_says() -> None:
    steps = cells(ARCHITECTURE.read_text(encoding="utf-8"), columns=4)[1:]
    assert [number for number, *_ in steps] == [str(n) for n in range(1, 12)]
    for _, _, where, names in steps:
        source = (ROOT / where.strip("`")).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"(def|class) {name}\b", source), f"{name} in {where}"


def test_the_fields_of_the_summary_are_all_told() -> None:
    table = [first for first, _ in cells(PYTHON.read_text(encoding="utf-8"), columns=2)[1:]]
    assert re.findall(r"\w+", " ".join(table)) != []
    assert {*re.findall(r"\w+", " ".join(table))} == {f.name for f in fields(Summary)}


@pytest.mark.usefixtures("local_ray")
def test_the_python_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks(PYTHON.read_text(encoding="utf-8"))
    assert len(code) >= 5
    names: dict[str, object] = {}
    for number, block in enumerate(code):
        exec(compile(block, f"{PYTHON.name}, block {number + 1}", "exec"), names)


def test_a_missing_file_is_found() -> None:
    text = "[a](nowhere.md), `llava_batch/nowhere.py`, `llava_batch/read/tar.py`"
    assert links(text) == ["nowhere.md"]
    assert [n for n in named_paths(text) if not list(ROOT.glob(n))] == ["llava_batch/nowhere.py"]
