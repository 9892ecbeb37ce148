"""Encoded bytes → an upright 8-bit RGB image, or the code of what is wrong with them.

The rules: the first frame of an animation; EXIF orientation applied; alpha over white; 16-bit grey
by its upper byte, 32-bit and float grey clipped to 0–255; CMYK, palette and the rest as Pillow
converts them. Sizes are checked before anything of that size is allocated, also of an image that
lies inside another.
"""

import io
import re
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageFile

from llava_batch.errors import RowError

_REFUSED_FORMATS = frozenset({"EPS", "PDF", "WMF", "FPX", "MIC", "MPEG", "BUFR", "GRIB", "HDF5"})
"""EPS starts an interpreter on the data; the others are stubs that decode nothing."""


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the orientation that EXIF notes; 1, or anything else, says that it stands upright."""


class BadImage(Exception):
    """An image that gives no pixels; `code` is the row's error code."""

    def __init__(self, code: RowError, message: str) -> None:
        super().__init__(message)
        self.code = code


def configure_pillow(*, max_pixels: int, allow_truncated: bool) -> None:
    """Set Pillow's process-wide limits; once, in the process that decodes."""
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow warns over this, and refuses over twice
    ImageFile.LOAD_TRUNCATED_IMAGES = allow_truncated
    Image.init()


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """The image in `data`, mode RGB, upright.

    Raises:
        BadImage: with the code and the decoder's own words.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities that it then copes with
            return _decode(data, max_pixels)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(re.sub(r"^\D*(\d+) pixels.*", r"\1", str(error)), max_pixels) from error
    except MemoryError as error:
        raise BadImage(RowError.IMAGE_TOO_LARGE, str(error) or "not enough memory") from error
    except Exception as error:  # a decoder raises anything at all; it is about this image
        # Without the address of our buffer: the same image has the same message in every run.
        text = re.sub(
            r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", f"{type(error).__name__}: {error}"
        )
        cut = "truncated" in text.lower() or "unexpected end" in text.lower()
        raise BadImage(
            RowError.IMAGE_TRUNCATED if cut else RowError.IMAGE_UNREADABLE, text
        ) from error


def check_canvas(width: int, height: int, pad: bool, shortest_edge: int | None, most: int) -> None:
    """Refuse an image whose padded or resized canvas would be over `most` pixels.

    Raises:
        BadImage: `image_too_large`, before the canvas is allocated.
    """
    if pad:
        pixels, what = max(width, height) ** 2, "padded to a square"
    elif shortest_edge:
        scale = shortest_edge / min(width, height)
        pixels, what = int(width * scale) * int(height * scale), "resized"
    else:
        return
    if pixels > most:
        raise _too_large(f"{width}x{height} {what} is {pixels}", most)


def expand_to_square(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The original LLaVA's `expand2square`: centred on a square of the background colour."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), background)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    formats = [f for f in Image.ID if f not in _REFUSED_FORMATS]
    image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(f"{width}x{height} is {width * height}", max_pixels)
    image.load()
    return _to_rgb(_upright(image))


def _too_large(pixels: str, max_pixels: int) -> BadImage:
    message = f"{pixels} pixels, the limit is {max_pixels} (--max-pixels)"
    return BadImage(RowError.IMAGE_TOO_LARGE, message)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; EXIF that does not read says nothing."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 the EXIF block is an image file of its own, with its own bugs
        return image
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, and fails of any field that is broken.
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _upper_byte(np.asarray(image), image.info.get("transparency"))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _upper_byte(grey: np.ndarray, transparent: int | None) -> Image.Image:
    """16-bit grey as RGB, the value that stands for transparent in white."""
    upper = (grey >> 8).astype(np.uint8)
    if transparent is not None:
        upper[grey == transparent] = 255
    return Image.fromarray(upper).convert("RGB")
