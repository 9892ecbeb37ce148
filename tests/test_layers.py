"""Who may import whom, read from the sources: data and imports flow one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llava_batch

PACKAGE = Path(llava_batch.__file__).parent
STAGES = ("read", "prepare", "generate", "write")


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


def _takes(module: str, package: str) -> bool:
    return any(i == package or i.startswith(package + ".") for i in IMPORTS[module])


def _stage(module: str) -> str | None:
    part = module.removeprefix("llava_batch.").partition(".")[0]
    return part if part in STAGES else None


@pytest.mark.parametrize("outsider", ["ray", "pyarrow", "PIL"])
def test_the_engine_knows_nothing_of_ray_arrow_or_pillow(outsider: str) -> None:
    assert ENGINE, "the engine's modules were found"
    assert not [module for module in ENGINE if _takes(module, outsider)]


def test_the_engine_knows_nothing_of_the_package_around_it() -> None:
    outside = {
        (module, i)
        for module in ENGINE
        for i in IMPORTS[module]
        if i.startswith("llava_batch.") and not i.startswith("llava_batch.engine")
    }
    assert outside == set()


def test_generate_is_the_only_file_where_ray_meets_the_engine() -> None:
    # Ray itself, or the parts of ours that speak to it.
    with_ray = {m for m in IMPORTS if _takes(m, "ray")}
    speakers = with_ray | {m for m in IMPORTS for r in ("attempts", "reporter", "board")
                           if _takes(m, f"llava_batch.{r}")}  # fmt: skip
    with_engine = {m for m in IMPORTS if _takes(m, "llava_batch.engine")} - ENGINE
    assert speakers & with_engine == {"llava_batch.generate.actor"}


def test_data_flows_from_read_to_prepare_to_generate_to_write() -> None:
    upstream = {
        (module, i)
        for module in IMPORTS
        for i in IMPORTS[module]
        if (here := _stage(module)) and (there := _stage(i)) and STAGES.index(there) > STAGES.index(here)
    }  # fmt: skip
    assert upstream == set()


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_knows_the_pipeline_or_the_command_line(stage: str) -> None:
    above = ("pipeline", "plan", "cli", "console", "progress", "summary")
    modules = [m for m in IMPORTS if _stage(m) == stage]
    assert modules
    assert not [(m, a) for m in modules for a in above if _takes(m, f"llava_batch.{a}")]


@pytest.mark.parametrize("module", ["job", "errors", "prompts", "presets", "scores"])
def test_what_is_said_in_plain_python_needs_nothing_installed(module: str) -> None:
    others = {i for i in IMPORTS[f"llava_batch.{module}"] if not i.startswith("llava_batch")}
    assert {i.partition(".")[0] for i in others} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", ["llava_batch", "llava_batch.cli.jobs"])
def test_importing_the_package_or_its_command_line_loads_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in {{'torch', 'ray', 'transformers'}} if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_the_public_surface_is_what_it_says() -> None:
    assert llava_batch.__all__ == ["Job", "LlavaBatchError", "run"]
    assert all(hasattr(llava_batch, name) for name in llava_batch.__all__)
    assert llava_batch.Job.__module__ == "llava_batch.job"


def test_every_module_opens_with_its_contract() -> None:
    undocumented = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert undocumented == []
