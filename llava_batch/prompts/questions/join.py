"""When a question's image and a row of the input are the same image, judged by their names.

A question names its image by an id (`42`), a key, a file name, a path, a URL, or by its bytes (a
`data:` URI, or `sha256:…`). A row has a unit and a key. Both are reduced to a join key; of the
questions that share a row's join key only the closest are the row's.

Names are all that is compared: two files of one base name in different folders are told apart only
where the question names the folder, or the unit. A unit goes by its name, and by that of the folder or
file that it is a numbered part of: `photos/a.jpg` is in unit `photos-00000`.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Set
from urllib.parse import unquote, urlsplit

_IMAGE_SUFFIX = re.compile(
    r"\.(jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|ppm|avif|heic)$", re.IGNORECASE
)
_COCO = re.compile(r"^COCO_(?:train|val|test)\d{4}_(\d{12})$")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_SHA256 = "sha256:"
_PART = re.compile(r"-\d{5}$")


def join_key(name: str) -> str:
    """The form of an image's name by which questions are looked up.

    The base name without an image's extension, a number without its leading zeros; COCO's file
    names count as their number, so `42`, `000000000042.jpg` and `COCO_val2014_000000000042.jpg`
    are one image. A `data:` URI becomes `sha256:` and the hash of its bytes.

    Raises:
        ValueError: the name is empty, or a `data:` URI that is not base64.
    """
    if name.startswith("data:"):
        return _SHA256 + hashlib.sha256(_data_uri_bytes(name)).hexdigest()
    if name.startswith(_SHA256):
        return name
    stem = _stem(_parts(name)[-1])
    coco = _COCO.match(stem)
    digits = coco[1] if coco else stem
    if digits.isascii() and digits.isdigit():
        return digits.lstrip("0") or "0"
    return stem


def brings_its_bytes(image: str) -> bool:
    """Whether a question's `image` is the image itself, so that whatever it joins is that image."""
    return image.startswith(("data:", _SHA256))


def unit_names(unit: str) -> frozenset[str]:
    """What a unit goes by in a question's image."""
    return frozenset({unit, _PART.sub("", unit)})


def closeness(
    image: str, unit: str, key: str, units: Set[str] = frozenset()
) -> tuple[int, int] | None:
    """How well a question's `image` fits the row, larger being closer; None: another image.

    The first number counts folders that agree, from the right (those of the key, then the unit);
    folders of the key that disagree make it another image, and so do folders that are one of
    `units`, the `unit_names` of all, and not of this one. The second says whether the base names
    are equal as they stand (2), but for the extension (1), or only as numbers (0).
    """
    if join_key(image) != join_key(key):
        return None
    if brings_its_bytes(image):
        return (0, 2)
    *asked, asked_base = _parts(image)
    *own, base = _parts(key)
    names = unit_names(unit)
    agreeing = max(_common_tail(asked, [*_parts(name), *own]) for name in names)
    if agreeing < min(len(asked), len(own)):
        return None
    named = _named(asked, units)
    if named and not named & names:
        return None
    same = 2 if asked_base == base else int(_stem(asked_base) == _stem(base))
    return (agreeing, same)


def _parts(name: str) -> list[str]:
    if _URL.match(name):
        url = urlsplit(name)
        name = unquote(f"{url.netloc}{url.path}")
    parts = [part for part in name.strip().split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError("an empty image name")
    return parts


def _stem(base: str) -> str:
    return _IMAGE_SUFFIX.sub("", base) or base


def _common_tail(left: list[str], right: list[str]) -> int:
    count = 0
    for a, b in zip(reversed(left), reversed(right), strict=False):
        if a != b:
            break
        count += 1
    return count


def _named(folders: list[str], units: Set[str]) -> set[str]:
    """The longest runs of neighbouring folders that are one of `units`; mostly one, or none."""
    for length in range(len(folders), 0, -1):
        runs = ("/".join(folders[i : i + length]) for i in range(len(folders) - length + 1))
        if named := units & {*runs}:
            return {*named}
    return set()


def _data_uri_bytes(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("a data: URI that is not base64")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a data: URI that is not base64 ({error})") from None
