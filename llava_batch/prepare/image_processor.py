"""The checkpoint's image processor as far as uint8: resize and crop, as transformers' PIL backend does.

Some of transformers' classes are said again here (CLIP's, SigLIP's, LLaVA's own and those that cut images
into tiles: they differ in their defaults), because importing any of them loads torch into every process
that prepares. A class or a setting that is not known here is left to transformers itself, but where
there are tiles (`tiles.py`): there it is refused. Rescaling and normalising are the
model's affair: pixels leave as uint8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from llava_batch.checkpoint import Checkpoint
from llava_batch.errors import UsageError, first_line
from llava_batch.prepare.own_shape import OwnShape

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_SHARED = {"do_resize": True, "resample": int(Image.Resampling.BICUBIC)}
_CLIP = _SHARED | {
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": _CLIP_MEAN,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "LlavaImageProcessor": _CLIP,
    "LlavaNextImageProcessor": _CLIP,
    "LlavaOnevisionImageProcessor": _SHARED
    | {"size": {"height": 384, "width": 384}, "image_mean": _CLIP_MEAN},
    "SiglipImageProcessor": _SHARED
    | {"size": {"height": 224, "width": 224}, "image_mean": (0.5, 0.5, 0.5)},
}
"""What each class has where the checkpoint's settings are silent; null is said, and means none."""

_PIXTRAL: dict[str, Any] = _SHARED | {
    "size": {"longest_edge": 1024},
    "patch_size": 16,
    "image_mean": _CLIP_MEAN,
}

_KNOWN = {
    *_CLIP, "do_pad", "image_grid_pinpoints", "aspect_ratio_setting", "image_processor_type", "feature_extractor_type", "processor_class",
    # Without effect on an RGB image up to uint8, or on the PIL backend:
    "do_convert_rgb", "do_rescale", "rescale_factor", "do_normalize", "image_std", "data_format",
    "input_data_format", "device", "disable_grouping", "return_tensors", "_valid_processor_keys",
}  # fmt: skip

Size = int | tuple[int, int]
"""The length of the shorter edge, or (height, width)."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """What becomes of an upright RGB image. `pixels` gives uint8 `[3, H, W]`, neither padded to a
    square nor rescaled nor normalised."""

    pixels: Callable[[Image.Image], np.ndarray]
    shortest_edge: int | None
    """To what the shorter edge is resized, where the other one follows from it."""

    pads: bool
    """Whether the checkpoint's own processing pads to a square."""

    background: tuple[int, int, int]
    """The mean colour that padding fills with, as the original LLaVA computes it."""

    resample: int
    """Pillow's filter for every resize."""


def load_image_processor(checkpoint: Checkpoint) -> ImageProcessor:
    """The image processor of `checkpoint`.

    Raises:
        UsageError: it has none, or one that cannot be read.
    """
    settings = _settings(checkpoint)
    if checkpoint.is_pixtral:
        return _in_own_shape(checkpoint, settings)
    made = _plain(settings)
    if checkpoint.tiling is None:
        return made or _transformers(checkpoint)
    if made is None:
        said = sorted(n for n, v in settings.items() if v is not None and n not in _KNOWN)
        raise _unfit(
            checkpoint, f"its settings are not known here: {', '.join(said) or 'its class'}"
        )
    _refuse_other_tiles(checkpoint, _DEFAULTS[_kind(settings)] | settings)
    return made


def _in_own_shape(checkpoint: Checkpoint, settings: dict[str, Any]) -> ImageProcessor:
    """Pixtral's, whose images have any shape.

    Raises:
        UsageError: a setting that is not known here, or that is not the vision tower's.
    """
    known = {*_KNOWN, "patch_size"}
    strange = sorted(n for n, v in settings.items() if v is not None and n not in known)
    kind = _kind(settings)
    if strange or kind != "PixtralImageProcessor":
        raise _unfit(checkpoint, f"not known here: {', '.join(strange) or kind}")
    all_ = _PIXTRAL | settings
    size, patch = all_["size"], _height_and_width(all_["patch_size"])
    longest = size.get("longest_edge") if isinstance(size, dict) else None
    most = _height_and_width(size if longest is None else longest)
    side, tower_patch = checkpoint.tower_sizes
    if most is None or max(most) > side or not all_["do_resize"] or all_.get("do_center_crop"):
        raise _unfit(checkpoint, f"size is {size}, the vision tower takes up to {side} pixels")
    if patch != (tower_patch, tower_patch):
        raise _unfit(
            checkpoint, f"patch_size is {all_['patch_size']}, the vision tower's {tower_patch}"
        )
    return ImageProcessor(
        pixels=OwnShape(most=most, patch=tower_patch, resample=all_["resample"]),
        shortest_edge=None,
        pads=False,
        background=_background(all_["image_mean"]),
        resample=all_["resample"],
    )


def _refuse_other_tiles(checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
    """Settings under which a tile would not be cut at the tower's own size, from the model's own grids.

    Raises:
        UsageError: which setting.
    """
    tiling = checkpoint.tiling
    assert tiling is not None
    side = tiling.side
    size = _size(settings["size"]) if settings["do_resize"] else None
    if size not in (side, (side, side)):
        raise _unfit(checkpoint, f"size is {settings['size']}, the vision tower's is {side}")
    if settings.get("do_center_crop") and _height_and_width(settings.get("crop_size")) != (
        side,
        side,
    ):
        raise _unfit(
            checkpoint, f"crop_size is {settings.get('crop_size')}, the vision tower's is {side}"
        )
    grids = settings.get("image_grid_pinpoints")
    if grids is not None and grids != checkpoint.said_grids:
        raise _unfit(
            checkpoint, f"image_grid_pinpoints are {grids}, the model's {checkpoint.said_grids}"
        )


def _unfit(checkpoint: Checkpoint, why: str) -> UsageError:
    return UsageError(f"--model {checkpoint.name}: its image processor cannot be had ({why})")


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """A processor's settings, of which the image processor's are a part; else those by themselves."""
    nested = (checkpoint.read_json("processor_config.json") or {}).get("image_processor")
    if nested is None:
        nested = checkpoint.read_json("preprocessor_config.json")
    return nested if isinstance(nested, dict) else {}


def _plain(settings: dict[str, Any]) -> ImageProcessor | None:
    """The processor as it is said here; None where it takes transformers to know."""
    kind = _kind(settings)
    if kind not in _DEFAULTS or not {n for n, v in settings.items() if v is not None} <= _KNOWN:
        return None
    all_ = _DEFAULTS[kind] | settings
    resizes, crops = bool(all_["do_resize"]), bool(all_.get("do_center_crop"))
    size, resample = (_size(all_["size"]), all_["resample"]) if resizes else (None, 0)
    crop = _height_and_width(all_.get("crop_size")) if crops else None
    mean = all_["image_mean"]
    if (
        (resizes and (size is None or type(resample) is not int))
        or (crops and crop is None)
        or not (isinstance(mean, list | tuple) and len(mean) == 3)
    ):
        return None
    return ImageProcessor(
        pixels=partial(_resized_and_cropped, size=size, crop=crop, resample=resample),
        shortest_edge=size if isinstance(size, int) else None,
        pads=kind == "LlavaImageProcessor" and bool(all_.get("do_pad")),
        background=_background(mean),
        resample=resample,
    )


def _kind(settings: dict[str, Any]) -> str:
    """transformers' name of the class; older files have other names for it."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    return str(kind).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")


def _size(value: Any) -> Size | None:
    if isinstance(value, dict) and value.keys() == {"shortest_edge"}:
        value = value["shortest_edge"]
    return value if _is_length(value) else _height_and_width(value)


def _height_and_width(value: Any) -> tuple[int, int] | None:
    if isinstance(value, dict) and value.keys() == {"height", "width"}:
        value = value["height"], value["width"]
    elif _is_length(value):
        value = value, value
    sound = isinstance(value, tuple) and all(map(_is_length, value))
    return value if sound else None


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 0


def _resized_and_cropped(
    image: Image.Image, *, size: Size | None, crop: tuple[int, int] | None, resample: int
) -> np.ndarray:
    if size is not None:
        height, width = _resized_size(size, image.height, image.width)
        image = image.resize((width, height), resample)
    pixels = np.asarray(image, dtype=np.uint8)
    if crop is not None:
        pixels = _center_crop(pixels, *crop)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resized_size(size: Size, height: int, width: int) -> tuple[int, int]:
    """(height, width) behind a resize; transformers cuts the longer edge's fraction off."""
    if isinstance(size, tuple):
        return size
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of `[H, W, 3]`, black where it is smaller than the crop (transformers' center_crop:
    an odd pixel too many goes at the lower right, an odd one too few comes at the upper left)."""
    for axis, length in enumerate((height, width)):
        missing = max(0, length - pixels.shape[axis])
        before = (missing + 1) // 2
        room = [(0, 0)] * 3
        room[axis] = before, missing - before
        pixels = np.pad(pixels, room) if missing else pixels
        start = (pixels.shape[axis] - length) // 2
        pixels = pixels.take(range(start, start + length), axis)
    return pixels


def _background(mean: Any) -> tuple[int, int, int]:
    red, green, blue = (int(value * 255) for value in np.broadcast_to(mean or 0.0, 3).tolist())
    return red, green, blue


def _transformers(checkpoint: Checkpoint) -> ImageProcessor:
    """transformers' own processor on its PIL backend (torchvision's pixels drift from it)."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            checkpoint.folder,
            backend="pil",
            local_files_only=True,
            trust_remote_code=checkpoint.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--model {checkpoint.name}: no image processor can be read there ({first_line(error)})"
        ) from None

    def pixels(image: Image.Image) -> np.ndarray:
        batch = processor(
            images=[image],
            do_pad=False,
            do_rescale=False,
            do_normalize=False,
            return_tensors="np",
        )
        return np.ascontiguousarray(batch["pixel_values"][0], dtype=np.uint8)

    size = processor.size or {}
    return ImageProcessor(
        pixels=pixels,
        shortest_edge=size.get("shortest_edge"),
        pads=type(processor).__name__.startswith("LlavaImageProcessor") and bool(processor.do_pad),
        background=_background(processor.image_mean),
        resample=int(processor.resample),
    )
