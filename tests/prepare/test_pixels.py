"""Padding to a square, and what becomes of odd and broken images."""

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from llava_batch.errors import RowError
from llava_batch.prepare.pixels import (
    BadImage,
    check_canvas,
    configure_pillow,
    decode,
    expand_to_square,
)

MAX_PIXELS = 89_478_485


@pytest.fixture(autouse=True)
def _pillow_as_it_was() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    configure_pillow(max_pixels=MAX_PIXELS, allow_truncated=False)
    yield
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng([width, height, seed])
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(data: bytes, max_pixels: int = MAX_PIXELS) -> RowError:
    with pytest.raises(BadImage) as error:
        decode(data, max_pixels)
    assert str(error.value), "the decoder's own words"
    return error.value.code


# Padding


def expand2square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The original LLaVA's function, said again without the code under test."""
    side = max(image.size)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = colour
    left, top = ((side - s) // 2 for s in image.size)
    square[top : top + image.height, left : left + image.width] = np.asarray(image)
    return Image.fromarray(square)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_a_square_holds_the_whole_picture_centred(width: int, height: int) -> None:
    image = noise(width, height)
    square = expand_to_square(image, (122, 116, 104))
    assert np.array_equal(np.asarray(square), np.asarray(expand2square(image, (122, 116, 104))))


# Odd images


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    points = [(0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1)]
    return [image.getpixel(p) for p in points]  # type: ignore[misc]


UPRIGHT = Image.new("RGB", (3, 2), "black")
UPRIGHT.putdata([(255, 0, 0), (0, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)])
TURNED = {  # how a camera stores the picture, by the orientation that it notes
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNED)
def test_every_exif_orientation_is_turned_upright(orientation: int) -> None:
    turn = TURNED[orientation]
    stored = UPRIGHT if turn is None else UPRIGHT.transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = decode(encoded(stored, "PNG", exif=exif), MAX_PIXELS)
    assert image.size == (3, 2)
    assert corners(image) == corners(UPRIGHT)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_says_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert corners(decode(encoded(UPRIGHT, exif=exif), MAX_PIXELS)) == corners(UPRIGHT)


def test_broken_exif_costs_no_image() -> None:
    data = encoded(noise(8, 8), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert decode(data, MAX_PIXELS).size == (8, 8)


def exif_with(*fields: tuple[int, int, int, int]) -> bytes:
    """An EXIF block of `fields` (tag, type, count, value) as they stand, sound or not."""
    body = b"".join(struct.pack("<HHII", *field) for field in sorted(fields))
    header = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(fields))
    return header + body + struct.pack("<I", 0)


@pytest.mark.parametrize(
    "broken",
    [(0x100, 2, 4, 0x61616161), (0x11A, 11, 1, 0x7FC00000), (0x8769, 4, 1, 99_999)],
    ids=["text for a number", "not a number", "a block beyond the end"],
)
def test_a_broken_field_beside_the_orientation_costs_neither_image_nor_turn(
    broken: tuple[int, int, int, int],
) -> None:
    turn_right = (ExifTags.Base.Orientation, 3, 1, 6)
    data = encoded(noise(8, 5), "JPEG", exif=exif_with(turn_right, broken))
    assert decode(data, MAX_PIXELS).size == (5, 8)


def test_cmyk_becomes_rgb_by_pillows_rule() -> None:
    image = noise(9, 5).convert("CMYK")
    data = encoded(image, "JPEG")
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(np.asarray(decode(data, MAX_PIXELS)), np.asarray(expected))


def test_16_bit_grey_is_taken_by_its_upper_byte() -> None:
    grey = np.array([[0, 255, 256], [0x80FF, 0xFF00, 0xFFFF]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(grey)), MAX_PIXELS)
    assert np.asarray(image)[..., 0].tolist() == [[0, 0, 1], [0x80, 0xFF, 0xFF]]
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        (b"P5 4 1 65535\n" + struct.pack(">4H", 0, 255, 256, 65535), [0, 0, 1, 255]),
        (b"P2 4 1 65535\n0 255 256 65535\n", [0, 0, 1, 255]),
        (b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095), [0, 128, 255]),
    ],
    ids=["binary", "plain", "12 bits"],
)
def test_a_portable_graymap_of_more_than_8_bits_is_taken_by_its_upper_byte(
    data: bytes, grey: list[int]
) -> None:
    assert np.asarray(decode(data, MAX_PIXELS))[0, :, 0].tolist() == grey


def test_a_transparent_16_bit_grey_is_white() -> None:
    grey = np.array([[0x1234, 0x1235]], dtype=np.uint16)
    data = encoded(Image.fromarray(grey), transparency=0x1234)
    assert np.asarray(decode(data, MAX_PIXELS))[0, :, 0].tolist() == [0xFF, 0x12]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_grey_is_clipped(kind: type) -> None:
    grey: np.ndarray = np.array([[-5, 0, 100, 255, 70_000]], dtype=kind)
    image = decode(encoded(Image.fromarray(grey), "TIFF"), MAX_PIXELS)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 100, 255, 255]


def test_a_palette_gives_its_colours() -> None:
    image = decode(encoded(UPRIGHT.quantize(6)), MAX_PIXELS)
    assert corners(image) == corners(UPRIGHT)


def test_one_bit_and_grey_images_become_rgb() -> None:
    for mode in ("1", "L"):
        image = decode(encoded(UPRIGHT.convert(mode)), MAX_PIXELS)
        assert image.mode == "RGB" and image.size == (3, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert decode(encoded(clear), MAX_PIXELS).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_black_over_white_is_grey() -> None:
    image = decode(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))), MAX_PIXELS)
    assert image.getpixel((0, 0)) == (127, 127, 127)


def test_a_transparent_palette_entry_and_a_transparent_colour_are_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putdata([0, 1])
    image = decode(encoded(palette, transparency=0), MAX_PIXELS)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]
    rgb = Image.new("RGB", (1, 1), (1, 2, 3))
    image = decode(encoded(rgb, transparency=(1, 2, 3)), MAX_PIXELS)
    assert image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert decode(data, MAX_PIXELS).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_one_pixel_is_an_image(kind: str) -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), "white"), kind), MAX_PIXELS).size == (1, 1)


# Too large


@pytest.mark.parametrize(("pad", "edge"), [(True, 336), (False, 336)])
def test_a_thin_strip_is_too_large_before_its_canvas_is_allocated(pad: bool, edge: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(
            BadImage, match=r"10000x1 .* the limit is 89478485 \(--max-pixels\)"
        ) as e:
            check_canvas(10_000, 1, pad, edge, MAX_PIXELS)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert e.value.code == RowError.IMAGE_TOO_LARGE


def test_the_canvas_may_have_exactly_as_many_pixels_as_are_allowed() -> None:
    check_canvas(100, 1, True, None, 10_000)
    check_canvas(200, 100, False, 50, 5_000)
    for size, pad, edge, most in [((100, 1), True, None, 9_999), ((200, 100), False, 50, 4_999)]:
        with pytest.raises(BadImage):
            check_canvas(*size, pad, edge, most)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data never had."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_by_its_header_alone(side: int, monkeypatch) -> None:
    def explode(self) -> None:
        raise AssertionError("pixels of a refused image were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", explode)
    assert refused(png_that_claims(side, side)) == RowError.IMAGE_TOO_LARGE


@pytest.mark.parametrize("pixels", [700, 1_100, 5_000])
def test_an_image_inside_another_is_refused_by_its_own_header(
    pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An icon whose directory says 16x16 and whose PNG is larger."""
    png = png_that_claims(pixels, 1)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 24, len(png), 22)
    configure_pillow(max_pixels=600, allow_truncated=False)

    def explode(self) -> None:
        raise AssertionError("pixels of a refused image were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", explode)
    with pytest.raises(BadImage, match=f"{pixels} pixels, the limit is 600 .--max-pixels.") as e:
        decode(struct.pack("<HHH", 0, 1, 1) + entry + png, 600)
    assert e.value.code == RowError.IMAGE_TOO_LARGE


@pytest.mark.parametrize("most", [99, 100, 101])
def test_an_image_may_have_exactly_as_many_pixels_as_are_allowed(most: int) -> None:
    configure_pillow(max_pixels=most, allow_truncated=False)
    assert decode(encoded(noise(most, 1)), most).size == (most, 1)
    assert refused(encoded(noise(most + 1, 1)), most) == RowError.IMAGE_TOO_LARGE


def test_the_pixel_limit_is_the_callers() -> None:
    assert decode(encoded(noise(10, 10)), 100).size == (10, 10)
    assert refused(encoded(noise(10, 11)), 100) == RowError.IMAGE_TOO_LARGE


# Broken


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4096,
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'{"error": "gone"}',
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"%PDF-1.4\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        b"BM" + b"\xff" * 60,
    ],
    ids=["empty", "zeros", "html", "json", "jpeg-head", "gif-head", "pdf", "eps", "bmp-head"],
)
def test_what_is_no_image_is_unreadable(data: bytes) -> None:
    assert refused(data) in (RowError.IMAGE_UNREADABLE, RowError.IMAGE_TRUNCATED)


def test_an_interpreter_is_never_started_on_the_data(monkeypatch) -> None:
    from PIL import EpsImagePlugin

    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: called.append(a))
    eps = encoded(noise(8, 8), "EPS")
    assert refused(eps) == RowError.IMAGE_UNREADABLE
    assert called == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_an_image_cut_short_is_in_error(kind: str) -> None:
    data = encoded(noise(64, 64), kind)
    assert refused(data[: len(data) // 2]) in (RowError.IMAGE_TRUNCATED, RowError.IMAGE_UNREADABLE)


def test_a_jpeg_cut_short_is_said_to_be_and_taken_when_allowed() -> None:
    image = noise(64, 64)
    data = encoded(image, "JPEG", quality=95)
    cut = data[: len(data) // 2]
    assert refused(cut) == RowError.IMAGE_TRUNCATED
    configure_pillow(max_pixels=MAX_PIXELS, allow_truncated=True)
    got, whole = np.asarray(decode(cut, MAX_PIXELS)), np.asarray(decode(data, MAX_PIXELS))
    assert got.shape == (64, 64, 3)
    assert np.array_equal(got[:8], whole[:8])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_image_gives_pixels_or_a_code_and_nothing_else(data) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]))
    body = bytearray(encoded(noise(24, 16), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(body), 10_000_000)
    except BadImage as error:
        assert error.code in RowError
    else:
        assert image.mode == "RGB" and image.width * image.height <= 10_000_000


def test_the_decoder_leaves_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    decode(encoded(noise(4, 4)), MAX_PIXELS)
    assert warnings.filters == before
