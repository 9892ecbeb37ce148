"""Pixels against the reference: transformers' own image processors, on their PIL backend."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor

from llava_batch.checkpoint import Checkpoint
from llava_batch.demo import model_path
from llava_batch.errors import UsageError
from llava_batch.prepare import image_processor
from llava_batch.prepare.image_processor import load_image_processor
from llava_batch.prepare.pixels import expand_to_square
from tests.prepare.test_pixels import expand2square, noise

SIZES = [(336, 336), (640, 100), (100, 640), (333, 337), (1, 1), (2, 3), (51, 50), (200, 7)]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def checkpoint(folder: Path, said: dict[str, Any], *, nested: bool = False) -> Checkpoint:
    """A checkpoint of which only the image processor's settings are there."""
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (folder / name).write_text(json.dumps({"image_processor": said} if nested else said))
    return Checkpoint(folder=str(folder), name="test")


def reference(made: Checkpoint) -> Any:
    return AutoImageProcessor.from_pretrained(made.folder, backend="pil")


def reference_pixels(made: Checkpoint, image: Image.Image, **options: Any) -> np.ndarray:
    """The reference processor's own pixels, up to uint8."""
    batch = reference(made)(
        images=image, do_rescale=False, do_normalize=False, return_tensors="np", **options
    )
    return batch["pixel_values"][0]


@pytest.fixture(scope="module", params=["clip-336", "clip-224", "llava-336", "siglip-384", "demo"])
def made(request: Any, tmp_path_factory: Any) -> Checkpoint:
    if request.param == "demo":
        return Checkpoint(folder=str(model_path()), name="demo")
    kind, side = request.param.split("-")
    square = {"height": int(side), "width": int(side)}
    kinds: dict[str, dict[str, Any]] = {
        "clip": {"image_processor_type": "CLIPImageProcessor"},
        "llava": {"image_processor_type": "LlavaImageProcessor"},
        "siglip": {"image_processor_type": "SiglipImageProcessor", "size": square},
    }
    said = {"image_mean": MEAN, "image_std": STD} | kinds[kind]
    cropped = {"size": {"shortest_edge": int(side)}, "crop_size": square}
    return checkpoint(tmp_path_factory.mktemp("processor"), cropped | said)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_the_reference_processors(made: Checkpoint, size: tuple[int, int]) -> None:
    image = noise(*size)
    ours = load_image_processor(made).pixels(image)
    theirs = reference_pixels(made, image, do_pad=False)
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
def test_padded_pixels_equal_a_plain_expand_to_square(
    made: Checkpoint, size: tuple[int, int]
) -> None:
    image = noise(*size)
    processor = load_image_processor(made)
    colour = tuple(int(mean * 255) for mean in reference(made).image_mean)
    ours = processor.pixels(expand_to_square(image, processor.background))
    theirs = reference_pixels(made, expand2square(image, colour), do_pad=False)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
def test_padded_pixels_equal_the_reference_processor_that_pads(size: tuple[int, int]) -> None:
    demo = Checkpoint(folder=str(model_path()), name="demo")
    processor = load_image_processor(demo)
    assert processor.pads
    image = noise(*size)
    ours = processor.pixels(expand_to_square(image, processor.background))
    assert np.array_equal(ours, reference_pixels(demo, image))


def test_normalising_our_uint8_gives_the_reference_processors_floats(made: Checkpoint) -> None:
    image = noise(333, 337)
    processor = reference(made)
    theirs = processor(images=image, do_pad=False, return_tensors="np")["pixel_values"][0]
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    ours = (load_image_processor(made).pixels(image) / 255 - mean) / std
    assert np.allclose(ours, theirs, atol=1e-5)


def test_a_mark_at_the_far_left_is_seen_with_pad_and_lost_with_crop() -> None:
    demo = load_image_processor(Checkpoint(folder=str(model_path()), name="demo"))
    picture = Image.new("RGB", (640, 100), "white")
    ImageDraw.Draw(picture).rectangle((0, 20, 40, 80), fill="red")

    def reds(pixels: np.ndarray) -> int:
        red, green, blue = pixels.astype(int)
        return int(((red > 200) & (green < 60) & (blue < 60)).sum())

    assert reds(demo.pixels(picture)) == 0
    assert reds(demo.pixels(expand_to_square(picture, demo.background))) > 20


# Settings, as checkpoints old and new write them

_lengths = st.integers(1, 40)
_squares = st.one_of(_lengths, st.fixed_dictionaries({"height": _lengths, "width": _lengths}))
_flags = st.sampled_from([True, False, None])
_types = st.sampled_from(["CLIPImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor"])
_said = st.fixed_dictionaries(
    {"type": st.one_of(_types, _types.map(lambda name: name + "Fast"), st.just("CLIPFeatureExtractor"))},
    optional={
        "size": st.one_of(_squares, st.none(), st.fixed_dictionaries({"shortest_edge": _lengths})),
        "crop_size": st.one_of(_squares, st.none()),
        "resample": st.one_of(st.integers(0, 5), st.none()),
        "do_resize": _flags,
        "do_center_crop": _flags,
        "do_convert_rgb": _flags,
        "do_pad": _flags,
        "image_mean": st.just([0.1, 0.2, 0.3]),
        "data_format": st.just("channels_first"),
        "device": st.none(),
        "processor_class": st.just("LlavaProcessor"),
        "of no class here": st.none(),
    },
)  # fmt: skip


@given(_said, st.integers(1, 60), st.integers(1, 60), st.booleans())
@settings(deadline=None, max_examples=100)
def test_any_settings_of_the_known_classes_give_the_reference_processors_pixels(
    said: dict[str, Any], width: int, height: int, nested: bool
) -> None:
    kind = said.pop("type")
    said["feature_extractor_type" if "Extractor" in kind else "image_processor_type"] = kind
    with TemporaryDirectory() as folder:
        made = checkpoint(Path(folder), said, nested=nested)
        processor = image_processor._plain(image_processor._settings(made))
        theirs = reference(made)
        try:
            wanted = reference_pixels(made, noise(width, height), do_pad=False)
        except ValueError:  # a size, a crop or a filter is null that it needs
            assert processor is None
            reject()
    assert processor is not None, "transformers was not asked"
    assert np.array_equal(processor.pixels(noise(width, height)), wanted)
    assert processor.background == tuple(int(mean * 255) for mean in theirs.image_mean)
    assert processor.shortest_edge == (
        (theirs.do_resize and theirs.size.get("shortest_edge")) or None
    )


@pytest.mark.parametrize(
    "said",
    [
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 30, "width": 20}},
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20, "longest_edge": 30}},
        {"image_processor_type": "CLIPImageProcessor", "size": [20, 30], "do_center_crop": False},
        {"image_processor_type": "CLIPImageProcessor", "use_square_size": True, "size": {"shortest_edge": 20}},
    ],
    ids=["class", "two edges", "a list", "another setting"],
)  # fmt: skip
def test_a_class_or_a_setting_that_is_not_known_is_left_to_transformers(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    made = checkpoint(tmp_path, said)
    assert image_processor._plain(said) is None
    ours = load_image_processor(made).pixels(noise(50, 40))
    assert np.array_equal(ours, reference_pixels(made, noise(50, 40)))


def test_a_processors_own_settings_come_before_the_older_file(tmp_path: Path) -> None:
    said = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20}}
    checkpoint(tmp_path, said | {"size": {"shortest_edge": 30}})
    assert load_image_processor(checkpoint(tmp_path, said, nested=True)).shortest_edge == 20
    assert reference(Checkpoint(folder=str(tmp_path), name="test")).size.shortest_edge == 20


def test_only_llavas_own_processor_pads_to_a_square(tmp_path: Path) -> None:
    said = {"image_processor_type": "CLIPImageProcessor", "do_pad": True}
    made = checkpoint(tmp_path, said)
    image = noise(300, 200)
    assert not load_image_processor(made).pads
    assert np.array_equal(load_image_processor(made).pixels(image), reference_pixels(made, image))


def test_a_checkpoint_without_an_image_processor_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(UsageError, match="--model test: no image processor can be read there"):
        load_image_processor(Checkpoint(folder=str(tmp_path), name="test"))
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"--model test: .*\(preprocessor_config.json: Expecting"):
        load_image_processor(Checkpoint(folder=str(tmp_path), name="test"))
