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


@pytest.mark.parametrize("family", ["next mistral"])
def test_a_family_captions_and_answers_dialogues_with_one_bad_image_among_the_good(
    family: str, images: Path, tmp_path: Path
) -> None:
    model = publish(family, tmp_path / "model", template_as="jinja")
    given = ["--input", str(images), "--model", str(model)]
    captions = answered("caption", tmp_path / "captions", *given)
    dialogues = answered(
        "vqa", tmp_path / "dialogues", *given, "--question", "What?", "--question", "Why?", "--dialogue"
    )  # fmt: skip
    for rows in (captions, dialogues):
        assert {key: row["status"] for key, row in rows.items()} == {
            **dict.fromkeys((f"{name}.png" for name in SIZES), "ok"), "torn.png": "error",
        }  # fmt: skip
        assert rows["torn.png"]["error_code"] == "image_unreadable"
    assert [len(row["turns"]) for row in dialogues.values()] == [2] * 4
    tokens = {key: row["prompt_tokens"] for key, row in captions.items() if row["status"] == "ok"}
    assert len(set(tokens.values())) == 3, "each size has its own tokens"
