"""The tiles of an image of any resolution are those of transformers' processors, on their PIL backend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from llava_batch.checkpoint import Checkpoint
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.prepare.image_processor import load_image_processor
from llava_batch.prepare.tiles import Tiles
from tests.prepare.test_pixels import noise
from tests.published import SIDE, publish

SIZES = [
    (1, 1),
    (4000, 100),
    (100, 4000),
    (28, 28),
    (57, 56),
    (33, 21),
    (300, 200),
    (2, 3),
    (1, 10000),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return publish("next vicuna", tmp_path_factory.mktemp("next"))


def tiles(folder: Path, **settings: Any) -> Tiles:
    made = Checkpoint.find(Job(model=str(folder), **settings))
    assert made.tiling is not None
    return Tiles(load_image_processor(made), made.tiling)


def reference(folder: Path, image: Image.Image, **changed: Any) -> dict[str, Any]:
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **changed)
    return processor(images=image, do_rescale=False, do_normalize=False, return_tensors="np")


@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_the_references(folder: Path, size: tuple[int, int]) -> None:
    image = noise(*size)
    pixels, layout = tiles(folder)(image, several=False, most_pixels=10**6)
    expected = reference(folder, image)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected["pixel_values"][0])
    assert expected["image_sizes"].tolist() == [[image.height, image.width]]
    assert len(pixels) == 1 + layout.rows * layout.columns


@pytest.mark.parametrize("size", SIZES)
def test_with_fewer_tiles_they_are_the_references_with_fewer_grids(folder, size) -> None:
    image = noise(*size)
    pixels, _ = tiles(folder, max_tiles=2)(image, several=True, most_pixels=1)
    fewer = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    expected = reference(folder, image, image_grid_pinpoints=fewer)
    np.testing.assert_array_equal(pixels, expected["pixel_values"][0])
    assert len(pixels) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": {"shortest_edge": 30}}, "size is .*30.*, the vision tower's is 28"),
        ({"crop_size": {"height": 20, "width": 20}}, "crop_size is .*20.*, the vision tower's is 28"),
        ({"do_resize": False}, "size is"),
        ({"image_grid_pinpoints": [[28, 28]]}, r"image_grid_pinpoints are \[\[28, 28\]\], the model's"),
        ({"a_new_setting": 3}, "a_new_setting"),
    ],
)  # fmt: skip
def test_a_processor_that_cuts_other_tiles_is_refused_by_name(tmp_path, change, said) -> None:
    made = publish("next vicuna", tmp_path)
    file = made / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UsageError, match=f"its image processor cannot be had .*{said}"):
        tiles(made)


def test_flags_that_mean_nothing_to_a_model_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--image-aspect pad: .* there is no square to make"):
        tiles(folder, image_aspect="pad")
    with pytest.raises(UsageError, match=r"--max-tiles 1: .*give at least 2"):
        tiles(folder, max_tiles=1)
    with pytest.raises(UsageError, match="--max-tiles 3: demo takes images whole"):
        Checkpoint.find(Job(max_tiles=3))
