"""What a preparing process loads: it is started many times over, and waits for nothing that it does
not use."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from llava_batch.demo import model_path
from tests.published import FAMILIES, publish

ROOT = Path(__file__).parents[2]
PREPARES = """
import io
from types import SimpleNamespace

import pyarrow as pa
import ray
from PIL import Image

from llava_batch.job import Job
from llava_batch.prepare.actor import Prepare
from llava_batch.tables import load_schema
from llava_batch.workers import counters, place

ray.get = lambda value, timeout=None: value
place.node_id = lambda: "here"
counters.StageMetrics = lambda stage: SimpleNamespace(add=lambda *told: None)
nothing, no_deaths = (SimpleNamespace(remote=lambda *args, given=v: given) for v in (None, []))
shared = SimpleNamespace(begin_if_clean=no_deaths, finish=nothing, report=nothing, offer=nothing)

picture = io.BytesIO()
Image.new("RGB", (30, 20)).save(picture, "PNG")
row = dict(unit="u", ordinal=0, end=False, key="k", mark="", images=[picture.getvalue()])
job = Job(model={model!r}, template={template!r}, question=("Who is </s>?", "Why?"), dialogue=True)
table = pa.Table.from_pylist([row], schema=load_schema("images"))
(out,) = next(Prepare(job, shared).tables(table)).to_pylist()
assert out["pixels"] and out["asks"][0]["token_ids"], out
"""


its_tokenizers_load_no_torch = pytest.mark.skipif(
    version("transformers").startswith("5.17."),
    reason="in transformers 5.17 tokenizers import torch",
)


def loaded_by(code: str, *packages: str) -> list[str]:
    """Which of `packages` a process of its own has loaded when it has run `code`."""
    told = f"{code}\nimport sys; print(*({{*{packages!r}}} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return sorted(ran.stdout.split())


@its_tokenizers_load_no_torch
def test_preparing_rows_loads_no_torch() -> None:
    assert loaded_by(PREPARES.format(model="demo", template="auto"), "torch") == []


@its_tokenizers_load_no_torch
def test_preparing_rows_with_a_chat_template_loads_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    code = PREPARES.format(model=str(model_path()), template=str(file))
    assert loaded_by(code, "torch") == []


@its_tokenizers_load_no_torch
def test_preparing_rows_for_any_family_loads_no_torch(tmp_path: Path) -> None:
    # LLaVA-OneVision's tokenizer was left to AutoTokenizer, which loads torch.
    codes = ["import sys"]
    for family in FAMILIES:
        folder = publish(family, tmp_path / family)
        codes.append(PREPARES.format(model=str(folder), template="auto"))
        codes.append(f"assert 'torch' not in sys.modules, {family!r}")
    qwens = tmp_path / "onevision" / "tokenizer_config.json"  # as the published ones have it
    qwens.write_text(
        json.dumps(json.loads(qwens.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"})
    )
    assert loaded_by("\n".join(codes), "torch") == []


def test_finding_a_checkpoint_loads_neither_torch_nor_transformers() -> None:
    code = (
        "from llava_batch.checkpoint import Checkpoint\n"
        "from llava_batch.job import Job\n"
        "made = Checkpoint.find(Job())\n"
        "assert made.commit is None and made.num_image_tokens(112, 112) == 64\n"
        "assert made.image_token_id == 3\n"
    )
    assert loaded_by(code, "torch", "transformers") == []
