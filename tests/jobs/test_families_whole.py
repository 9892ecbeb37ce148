"""Families whose images are cut into tiles, through what stands around a job: recipes and their exports, report,
estimate, quantized weights, choices, schemas and samples."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from llava_batch.cli.jobs import app, exit_status
from llava_batch.driver import pilot
from tests.instruct.llava_form import check_llava
from tests.prepare.test_pixels import noise
from tests.published import publish

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]
SIZES = {"dot": (1, 1), "photo": (90, 60), "strip": (400, 10), "tall": (30, 200)}
RECIPE = """
name: short
description: Two turns more.
turns:
  - draw: 1
    prompts: ["What is it?", "Who is there?"]
  - draw: 2
    prompts: ["Why?", "Where?", "How many?"]
temperature: 0.7
max_new_tokens: 5
filters: {min_words: 0, max_words: 1000, max_repetition: 1.0, min_mean_logprob: -1000.0,
          refusals: false, unfinished: false}
"""
SCHEMA = {"type": "object", "properties": {"is": {"enum": ["cat", "red"]}}, "required": ["is"],
          "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module", params=["next mistral", "onevision"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(publish(request.param, tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of any shape, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for name, size in SIZES.items():
        noise(*size).save(folder / f"{name}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG of no picture")
    return str(folder)


def ran(*arguments: str) -> None:
    assert exit_status(app, [*arguments], "llava-batch") == 0, arguments


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ds.dataset(folder).to_table().to_pylist()
    return found


def said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "_run.json").read_text())
    return found


def test_a_recipe_is_answered_exported_and_reported(
    model: str, images: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "short.yaml"
    recipe.write_text(RECIPE)
    out = tmp_path / "out"
    given = ["--input", images, "--model", model, "--recipe", str(recipe), "--slots", "3"]
    ran("instruct", *given, "--output", str(out), "--export", "llava", "--export", "webdataset",
        "--quiet")  # fmt: skip
    rows = rows_of(out / "answers")
    good = [row for row in rows if row["status"] == "ok"]
    assert len(good) == len(SIZES) and all(len(row["turns"]) == 3 for row in good)
    assert len({row["prompt_tokens"] for row in good}) > 1, "an image's tokens follow its size"
    assert all(row["prompt"].count("<image>") == 1 for row in good)
    counts = json.loads((out / "instructions" / "_counts.json").read_text())["counts"]
    assert counts["kept"] > 0
    llava = json.loads((out / "llava.json").read_text())
    assert check_llava(llava) == counts["kept"]
    assert all((out / "images" / entry["image"]).is_file() for entry in llava)
    ran("report", str(out))
    (page,) = out.rglob("_report.html")
    assert all(f"{name}.png" in page.read_text() for name in SIZES)


@pytest.mark.parametrize("job", ["caption", "instruct"])
def test_an_estimate_of_the_whole_input_is_what_the_job_then_does(
    model: str, images: str, tmp_path: Path, job: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot, "STEADY_S", 0.2)
    monkeypatch.setattr(pilot, "SETTLED_S", 0.1)
    recipe = tmp_path / "short.yaml"
    recipe.write_text(RECIPE)
    how = {"caption": ["--max-new-tokens", "6"], "instruct": ["--recipe", str(recipe)]}[job]
    given = ["--input", images, "--model", model, *how, "--quiet"]
    ran("estimate", job, *given, "--json", "--pilot", "100")
    told = json.loads(capsys.readouterr().out)
    ran(job, *given, "--output", str(tmp_path / "out"))
    run = said(tmp_path / "out" / ("answers" if job == "instruct" else ""))["run"]
    for name in ("images", "rows", "prompt_tokens", "answer_tokens"):
        assert told[name] == dict.fromkeys(("value", "low", "high"), run[name]), name
    assert told["rows_in_error"]["value"] == 1


@pytest.mark.parametrize(
    ("kind", "package"),
    [("nf4", "bitsandbytes"), ("int8", "bitsandbytes"), ("int8wo", "torchao")],
)
def test_a_job_with_quantized_weights_answers_and_says_so(
    model: str, images: str, tmp_path: Path, kind: str, package: str, capsys: Any
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    given = ["--input", images, "--model", model, "--max-new-tokens", "6"]
    quantized, plain = tmp_path / "quantized", tmp_path / "plain"
    ran("caption", *given, "--output", str(quantized), "--quantization", kind, "--quiet")
    ran("caption", *given, "--output", str(plain), "--quiet")
    ours, theirs = ({row["key"]: row for row in rows_of(at)} for at in (quantized, plain))
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert (row["status"], row["prompt_tokens"]) == (
            theirs[key]["status"],
            theirs[key]["prompt_tokens"],
        )
        if row["status"] == "ok":
            assert row["mean_logprob"] != theirs[key]["mean_logprob"]
    assert said(quantized)["settings"]["quantization"] == kind
    capsys.readouterr()
    ran("caption", *given, "--output", str(tmp_path / "dry"), "--quantization", kind, "--dry-run")
    assert "by its size (--max-tiles bounds it)" in capsys.readouterr().err


def test_choices_schemas_and_samples_of_a_job(model: str, images: str, tmp_path: Path) -> None:
    given = ["--input", images, "--model", model, "--question", "What?", "--slots", "3", "--quiet"]
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    ran("vqa", *given, "--output", str(tmp_path / "choices"), "--choices", "yes,no")
    ran("vqa", *given, "--output", str(tmp_path / "json"), "--json-schema", str(schema))
    ran("vqa", *given, "--output", str(tmp_path / "samples"), "--num-samples", "3",
        "--temperature", "1", "--max-new-tokens", "6")  # fmt: skip
    good = {
        name: [row for row in rows_of(tmp_path / name) if row["status"] == "ok"]
        for name in ("choices", "json", "samples")
    }
    assert {row["answer"] for row in good["choices"]} <= {"yes", "no"}
    assert {json.loads(row["answer"])["is"] for row in good["json"]} <= {"cat", "red"}
    counts = {name: len(rows) for name, rows in good.items()}
    assert counts == {"choices": len(SIZES), "json": len(SIZES), "samples": 3 * len(SIZES)}
