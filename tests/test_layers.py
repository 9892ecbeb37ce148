"""Who may import whom, read from the sources: data and imports flow one way.

Every import counts, inside functions and under TYPE_CHECKING too. `ROOMS` is the one table.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import llava_batch

PACKAGE = Path(llava_batch.__file__).parent
NAME = PACKAGE.name
GROUND = {"errors", "ids", "job", "patience", "storage", "tables", "unit", "version"}
STAGES = {"read", "prepare", "generate", "write"}
BESIDE = {"ground", "prompts", "checkpoint", "workers"}
ROOMS: dict[str, set[str]] = {
    "ground": set(),
    "engine": set(),
    "demo": set(),
    "prompts": {"ground"},
    "answers": {"ground"},
    "workers": {"ground"},
    "checkpoint": {"ground", "prompts", "demo"},
    "read": BESIDE,
    "prepare": BESIDE,
    "generate": BESIDE | {"engine"},
    "write": BESIDE,
    "report": {"ground", "prompts", "answers"},
    "score": {"ground", "prompts", "answers"},
    "instruct": {"ground", "prompts", "answers", "read"},
    "driver": BESIDE | STAGES | {"answers", "engine"},
    "pipeline": BESIDE | STAGES | {"driver"},
    "api": {"ground", "driver", "pipeline"},
    "cli": BESIDE | STAGES | {"answers", "report", "score", "instruct", "demo", "driver", "pipeline"},
}  # fmt: skip
"""Each room of the package, and the rooms that it may import; `api` is `llava_batch/__init__.py`."""


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(source: str) -> set[str]:
    """Every module that is imported anywhere in it, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            module = str(node.module)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


IMPORTS = {_name(p): _imports(p.read_text("utf-8")) for p in sorted(PACKAGE.rglob("*.py"))}
ENGINE = {name for name in IMPORTS if f"{name}.".startswith("llava_batch.engine.")}


def arrows(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The files of ours that each file imports. `from a.b import c` is an arrow to `a.b.c` where that
    is a file, and then none to `a.b`, whose first lines only run on the way."""
    found = {}
    for module, names in imports.items():
        ours = {name for name in names if name in imports}
        found[module] = {n for n in ours if not any(o.startswith(n + ".") for o in ours)} - {module}
    return found


def room(module: str) -> str:
    part = module.removeprefix(NAME).strip(".").partition(".")[0]
    return "ground" if part in GROUND else part or "api"


def problems(imports: Mapping[str, set[str]]) -> list[str]:
    """What breaks the table, and the first circle between files."""
    drawn = arrows(imports)
    wrong = [
        f"{here} imports {there}"
        for here, targets in sorted(drawn.items())
        for there in sorted(targets)
        if room(there) not in ROOMS[room(here)] | {room(here)}
    ]
    try:
        TopologicalSorter(drawn).prepare()
    except CycleError as error:
        wrong.append("a circle: " + " -> ".join(reversed(error.args[1])))
    return wrong


def test_every_import_keeps_to_the_table_and_none_goes_in_a_circle() -> None:
    assert {room(module) for module in IMPORTS} == ROOMS.keys()
    assert problems(IMPORTS) == []


def test_the_table_has_no_circle_itself_and_no_stage_may_import_another() -> None:
    TopologicalSorter(ROOMS).prepare()
    assert not [stage for stage in STAGES if ROOMS[stage] & STAGES]


@pytest.mark.parametrize(
    ("here", "there", "told"),
    [
        ("read.tar", "read.row", "a circle: "),
        ("prepare.actor", "read.find", "prepare.actor imports llava_batch.read.find"),
        ("job", "driver.plan", "job imports llava_batch.driver.plan"),
        ("engine.request", "errors", "engine.request imports llava_batch.errors"),
        ("driver.plan", "cli.jobs", "driver.plan imports llava_batch.cli.jobs"),
    ],
)
def test_a_circle_a_stage_that_imports_another_and_an_arrow_back_up_are_found(
    here: str, there: str, told: str
) -> None:
    imports = {name: set(found) for name, found in IMPORTS.items()}
    imports[f"{NAME}.{here}"].add(f"{NAME}.{there}")
    if told.startswith("a circle"):
        imports[f"{NAME}.{there}"].add(f"{NAME}.{here}")
    assert any(told in problem for problem in problems(imports))


def test_imports_inside_functions_and_for_types_alone_are_counted() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from llava_batch.job import Job\n"
        "def late():\n    import llava_batch.errors\n"
    )
    assert {"llava_batch.job", "llava_batch.errors"} <= _imports(source)


def test_the_house_is_read_off_its_first_level() -> None:
    entries = {p.name for p in PACKAGE.iterdir()} - {"__pycache__"}
    assert {p.removesuffix(".py") for p in entries} >= STAGES
    assert len(entries) <= 26


def _takes(module: str, package: str) -> bool:
    return any(i == package or i.startswith(package + ".") for i in IMPORTS[module])


@pytest.mark.parametrize("outsider", ["ray", "pyarrow", "PIL"])
def test_the_engine_knows_nothing_of_ray_arrow_or_pillow(outsider: str) -> None:
    assert ENGINE, "the engine's modules were found"
    assert not [module for module in ENGINE if _takes(module, outsider)]


def test_generate_is_the_only_stage_where_ray_meets_the_engine() -> None:
    # Ray itself, or the parts of ours that speak to it: of the workers' all but their own process.
    parts = {m for m in IMPORTS if room(m) == "workers"} - {f"{NAME}.workers.process"}
    speakers = {m for m in IMPORTS if _takes(m, "ray") or arrows(IMPORTS)[m] & parts}
    with_engine = {m for m in IMPORTS if _takes(m, "llava_batch.engine")} - ENGINE
    meet = {m for m in speakers & with_engine if room(m) != "driver"}
    assert meet == {"llava_batch.generate.actor"}


PLAIN = (
    "job",
    "errors",
    "ids",
    "patience",
    "prompts.guards",
    "prompts.templates",
    "prompts.presets",
    "score.rules",
)


@pytest.mark.parametrize("module", PLAIN)
def test_what_is_said_in_plain_python_needs_nothing_installed(module: str) -> None:
    others = {i for i in IMPORTS[f"llava_batch.{module}"] if not i.startswith("llava_batch")}
    assert {i.partition(".")[0] for i in others} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", ["llava_batch", "llava_batch.cli.jobs"])
def test_importing_the_package_or_its_command_line_loads_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in {{'torch', 'ray', 'transformers'}} if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_the_public_surface_is_what_it_says() -> None:
    assert llava_batch.__all__ == ["Job", "LlavaBatchError", "__version__", "run"]
    assert all(hasattr(llava_batch, name) for name in llava_batch.__all__)
    assert llava_batch.Job.__module__ == "llava_batch.job"


def test_every_module_opens_with_its_contract() -> None:
    undocumented = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert undocumented == []
