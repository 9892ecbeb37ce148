"""The tiles of an image of any resolution are those of transformers' processors, on their PIL backend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoImageProcessor

from llava_batch.checkpoint import Checkpoint
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.prepare.image_processor import load_image_processor
from llava_batch.prepare.pixels import BadImage
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


@pytest.fixture(scope="module", params=["next vicuna", "onevision"])
def folder(request: Any, tmp_path_factory: Any) -> Path:
    return publish(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: Any) -> Path:
    return publish("onevision", tmp_path_factory.mktemp("onevision"))


@pytest.fixture(scope="module")
def pixtral(tmp_path_factory: Any) -> Path:
    return publish("pixtral", tmp_path_factory.mktemp("pixtral"))


def tiles(folder: Path, **settings: Any) -> Tiles:
    made = Checkpoint.find(Job(model=str(folder), **settings))
    assert made.tiling is not None
    return Tiles(load_image_processor(made), made.tiling)


def reference(folder: Path, image: Any, **changed: Any) -> dict[str, Any]:
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
    assert layout is not None
    assert len(pixels) == 1 + layout.rows * layout.columns


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [2, 3])
def test_with_fewer_tiles_they_are_the_references_with_fewer_grids(folder, size, most) -> None:
    image = noise(*size)
    rule = tiles(folder, max_tiles=most)
    pixels, _ = rule(image, several=False, most_pixels=1)
    said = json.loads((folder / "config.json").read_text())["image_grid_pinpoints"]
    fewer = [pair for pair in said if pair[0] * pair[1] <= most * SIDE * SIDE]
    expected = reference(folder, image, image_grid_pinpoints=fewer)
    np.testing.assert_array_equal(pixels, expected["pixel_values"][0])
    assert len(pixels) <= 1 + most


@pytest.mark.parametrize("size", [(90, 40), (3, 70), (28, 28)])
def test_of_several_images_onevision_sees_each_whole_on_a_square(onevision, size) -> None:
    image = noise(*size)
    pixels, layout = tiles(onevision)(image, several=True, most_pixels=10**6)
    expected = reference(onevision, [[image, image]])["pixel_values"][0]
    np.testing.assert_array_equal(pixels, expected)
    assert layout is None


def test_a_square_over_the_pixel_limit_is_too_large_before_it_is_made(onevision: Path) -> None:
    with pytest.raises(BadImage, match="100x4 padded to a square is 10000 pixels") as raised:
        tiles(onevision)(noise(100, 4), several=True, most_pixels=9999)
    assert raised.value.code == "image_too_large"


@pytest.mark.parametrize(
    "size", [(1, 1), (4000, 100), (100, 4000), (112, 112), (113, 30), (300, 5)]
)
def test_an_image_in_its_own_shape_is_the_references(pixtral, size) -> None:
    image = noise(*size)
    pixels = load_image_processor(Checkpoint.find(Job(model=str(pixtral)))).pixels(image)
    np.testing.assert_array_equal(pixels, reference(pixtral, image)["pixel_values"][0])


def test_an_image_without_a_pixel_in_its_own_shape_is_unreadable(pixtral: Path) -> None:
    made = load_image_processor(Checkpoint.find(Job(model=str(pixtral))))
    with pytest.raises(BadImage, match="1x10000 is too thin: within 112x112") as raised:
        made.pixels(noise(1, 10000))
    assert raised.value.code == "image_unreadable"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": {"longest_edge": 224}}, "size is .*224.*, the vision tower takes up to 112"),
        ({"patch_size": 14}, "patch_size is 14, the vision tower's 7"),
        ({"do_resize": False}, "size is"),
        ({"do_center_crop": True}, "size is"),
        ({"image_processor_type": "CLIPImageProcessor"}, "not known here: CLIPImageProcessor"),
        ({"a_new_setting": 3}, "a_new_setting"),
    ],
)
def test_a_processor_of_other_shapes_is_refused_by_name(tmp_path, change, said) -> None:
    made = publish("pixtral", tmp_path)
    file = made / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UsageError, match=f"its image processor cannot be had .*{said}"):
        load_image_processor(Checkpoint.find(Job(model=str(made))))


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


def test_flags_that_mean_nothing_to_a_model_are_refused(onevision: Path, pixtral: Path) -> None:
    with pytest.raises(UsageError, match=r"--image-aspect pad: .* there is no square to make"):
        tiles(onevision, image_aspect="pad")
    with pytest.raises(UsageError, match=r"--image-aspect crop: .* in their own shape"):
        Checkpoint.find(Job(model=str(pixtral), image_aspect="crop"))
    for model in (str(pixtral), "demo"):
        with pytest.raises(UsageError, match=f"--max-tiles 3: {model} takes images whole"):
            Checkpoint.find(Job(model=model, max_tiles=3))
