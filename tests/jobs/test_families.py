"""Each family's jobs end to end: captions and dialogues over good images and a bad one, on one Ray."""

from pathlib import Path

import pyarrow.dataset as ds
import pytest

from llava_batch.cli.jobs import app, exit_status
from tests.prepare.test_pixels import noise
from tests.published import publish

pytestmark = pytest.mark.usefixtures("local_ray")
SIZES = {"dot": (1, 1), "photo": (90, 60), "strip": (400, 10)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images of any shape, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for name, size in SIZES.items():
        noise(*size).save(folder / f"{name}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG of no picture")
    return folder


def answered(job: str, out: Path, *args: str) -> dict[str, dict]:
    """The command line's rows by key; it must end well."""
    flags = [*args, "--output", str(out), "--quiet", "--max-new-tokens", "6", "--slots", "2"]
    assert exit_status(app, [job, *flags], "llava-batch") == 0
    return {row["key"]: row for row in ds.dataset(out).to_table().to_pylist()}


def check(rows: dict[str, dict], *, turns: int) -> None:
    """The good images are answered, in so many turns, and the bad one costs its own row."""
    good = dict.fromkeys((f"{name}.png" for name in SIZES), "ok")
    assert {key: row["status"] for key, row in rows.items()} == good | {"torn.png": "error"}
    assert rows["torn.png"]["error_code"] == "image_unreadable"
    assert [len(rows[key]["turns"]) for key in good] == [turns] * len(good)


SLOW = pytest.mark.slow
FAMILIES = ["next mistral", *(pytest.param(name, marks=SLOW) for name in
            ("onevision", "vip", "pixtral", "llava siglip", "llava", "next qwen"))]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_captions_images_of_any_size_with_a_bad_one_among_them(
    family: str, images: Path, tmp_path: Path
) -> None:
    model = publish(family, tmp_path / "model", template_as="jinja")
    rows = answered("caption", tmp_path / "out", "--input", str(images), "--model", str(model))
    check(rows, turns=1)
    tokens = {row["prompt_tokens"] for row in rows.values() if row["status"] == "ok"}
    any_size = not family.startswith(("vip", "llava"))
    assert len(tokens) == (3 if any_size else 1), "each size has its own tokens"


@pytest.mark.parametrize(
    "family", ["onevision", *(pytest.param(name, marks=SLOW) for name in
               ("next vicuna", "next siglip", "vip", "pixtral", "llava siglip", "llava", "next llama 3"))]
)  # fmt: skip
def test_a_family_answers_dialogues_with_a_bad_image_among_them(
    family: str, images: Path, tmp_path: Path
) -> None:
    model = publish(family, tmp_path / "model")
    given = ["--input", str(images), "--model", str(model), "--dialogue"]
    rows = answered("vqa", tmp_path / "out", *given, "--question", "What?", "--question", "Why?")
    check(rows, turns=2)
