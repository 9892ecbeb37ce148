"""Mutated images and shards through reading and preparing: no crash, no hang, every row accounted for.

`make test` takes a small share. The whole: `LLAVA_BATCH_FUZZ=50 pytest tests/read/test_fuzz.py`.
"""

import io
import os
import random

import pytest
from PIL import Image

from llava_batch.errors import RowError
from llava_batch.job import Job
from llava_batch.prepare.pixels import (
    BadImage,
    check_canvas,
    configure_pillow,
    decode,
    expand_to_square,
)
from tests.shards import picture, put, put_parquet, read, reading, tar_bytes

TIMES = int(os.environ.get("LLAVA_BATCH_FUZZ", "1"))
NUM_IMAGES = 200 * TIMES
NUM_SHARDS = 10 * TIMES
"""Of tars, and as many of Parquet files."""

FORMATS = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000"]  # fmt: skip
CODES = {*RowError}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, a stretch cut out, doubled or overwritten, or the end cut off."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        start = chance.randrange(len(made) + 1)
        length = min(chance.randrange(1, 40), len(made) - start)
        kind = chance.randrange(6)
        if kind == 0:
            made[start : start + length] = chance.randbytes(length)
        elif kind == 1:
            del made[start : start + length]
        elif kind == 2:
            made[start:start] = made[start : start + length]
        elif kind == 3:
            made[start : start + length] = b"\xff" * length
        elif kind == 4 and length:
            made[start] ^= 1 << chance.randrange(8)
        elif kind == 5 and chance.random() < 0.3:
            del made[start:]
    return bytes(made)


def seeds(chance: random.Random) -> list[bytes]:
    """One small image of each format, several modes among them, with EXIF."""
    made = []
    for format in FORMATS:
        image = Image.effect_noise((chance.randrange(5, 60), chance.randrange(5, 60)), 80)
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"):
            file = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = chance.randrange(1, 9)
            try:
                image.convert(mode).save(file, format, exif=exif)
            except (OSError, ValueError, KeyError):
                continue  # not a mode of this format
            made.append(file.getvalue())
    return made


@pytest.mark.timeout(3600)
def test_mutated_images_are_decoded_or_said_to_be_bad():
    chance = random.Random(TIMES)
    job = Job()
    configure_pillow(max_pixels=job.max_pixels, allow_truncated=False)
    sound, counts = seeds(chance), {"ok": 0, "bad": 0}
    for _ in range(NUM_IMAGES):
        data = mutated(chance.choice(sound), chance)
        try:
            image = decode(data, job.max_pixels)
            check_canvas(*image.size, True, None, job.max_pixels)
            assert image.mode == "RGB"
            if max(image.size) < 2000:
                expand_to_square(image, (1, 2, 3)).resize((112, 112))
            counts["ok"] += 1
        except BadImage as error:
            assert error.code in CODES and str(error)
            counts["bad"] += 1
    assert counts["ok"] + counts["bad"] == NUM_IMAGES
    assert min(counts.values()) > NUM_IMAGES / 20, counts


def sound_tar() -> bytes:
    """Samples of an image and a JSON member, names short and long."""
    names = [f"{'./' * (n % 2)}{'x' * (n * 9)}/{n:03}" for n in range(12)]
    members = [(f"{name}.png", picture(n)) for n, name in enumerate(names)]
    members += [(f"{name}.json", b'{"caption": "a \xc3\xa9"}') for name in names]
    return tar_bytes(sorted(members))


@pytest.mark.timeout(3600)
def test_mutated_tars_are_read_to_their_end(tmp_path):
    chance = random.Random(TIMES)
    sound = sound_tar()
    for number in range(NUM_SHARDS):
        path = put(tmp_path / f"{number}.tar", mutated(sound, chance))
        rows = read(path, reading(None, "caption"))
        assert rows and all(r["error_code"] is None or r["error_code"] in CODES for r in rows)


@pytest.mark.timeout(3600)
def test_mutated_parquet_files_are_read_to_their_end(tmp_path):
    chance = random.Random(TIMES)
    columns = {
        "key": [f"k{n}" for n in range(30)],
        "image": [picture(n) for n in range(30)],
        "caption": ["text"] * 30,
    }
    sound = put_parquet(tmp_path / "sound.parquet", columns).read_bytes()
    for number in range(NUM_SHARDS):
        path = put(tmp_path / f"{number}.parquet", mutated(sound, chance))
        rows = read(path, reading(None, "caption"))
        assert all(r["error_code"] is None or r["error_code"] in CODES for r in rows)
