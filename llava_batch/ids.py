"""Row ids, made and taken apart: `<base>/<key><mark>#<question_id>~<sample>`. The base is the unit's name;
of a lake table whose rows go by a key column the table's, which the unit's name begins with.

The image's part, `<base>/<key><mark>`, stands in every id; question and sample only where a row has
several. In keys and question ids `%`, `#` and `~` are percent-escaped, so the parts can be told from
each other; a unit's name is a path and stays as it is. A mark (`%dup2`) tells rows of one key apart.
Knows nothing of tables or files.
"""

import hashlib
import json
from collections.abc import Sequence


def printable(text: str) -> str:
    """`text` as valid UTF-8: a name with stray bytes keeps them as `\\xNN`, a half pair as `\\uNNNN`."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def escaped(text: str) -> str:
    """`text` without the characters that separate the parts of an id."""
    return text.replace("%", "%25").replace("#", "%23").replace("~", "%7E")


def name_in_unit(key: str, mark: str | None) -> str:
    """An image's name within its unit: the key as valid UTF-8, escaped, and the mark."""
    return escaped(printable(key)) + (mark or "")


def image_id(base: str, key: str, mark: str | None = None) -> str:
    """What the ids of all rows about an image begin with."""
    return f"{base}/{name_in_unit(key, mark)}"


def row_id(image: str, question_id: str | None, sample: int | None = None) -> str:
    """The id of one answer about `image` (an `image_id`)."""
    asked = image if question_id is None else f"{image}#{escaped(question_id)}"
    return asked if sample is None else f"{asked}~{sample}"


def image_of(id: str, unit: str) -> str:
    """The `image_id` in a row's `id`; `unit` is the row's own, whose name may hold `#` and `~`."""
    base = unit
    while base and not id.startswith(f"{base}/"):
        base = base.rpartition("/")[0]  # a lake table's name
    return f"{base}/{name_of(id, base)}" if base else name_of(id, unit)


def name_of(id: str, base: str) -> str:
    """The image's name within its unit, taken from a row's `id`; `base` is the unit's `id_base`."""
    rest = id.removeprefix(f"{base}/")
    return rest.partition("#")[0].partition("~")[0]


def image_digest(image: str) -> int:
    """64 bits of an `image_id`."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest(), "little")


def answer_digest(id: str, image_sha256: str | None, questions: Sequence[str]) -> int:
    """64 bits of what an answer answers: its row, its image's bytes, and its turns' questions."""
    text = json.dumps([id, image_sha256, *questions])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
