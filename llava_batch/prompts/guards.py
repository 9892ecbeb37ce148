"""Guards: text that users or their data bring is *data*.

Special tokens in it (`</s>`, `<pad>`, …) are fenced, so that they stay the characters they are: no
template trips over them and no tokenizer takes them for tokens. `<image>` in a prompt or question
marks an image's place; inside a column's value it does not, and is fenced too. Text only.
"""

import re
from collections.abc import Sequence

IMAGE = "<image>"
OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, reserved for use inside a program; they fence what is guarded."""


class Guards:
    """Fences the special tokens in text that users (`text`) or their data (`value`) bring."""

    def __init__(self, specials: Sequence[str]) -> None:
        longest_first = sorted({*specials, IMAGE}, key=len, reverse=True)
        self._all = _any_of([*longest_first, OPEN, CLOSE])
        self._but_image = _any_of([s for s in [*longest_first, OPEN, CLOSE] if s != IMAGE])

    def text(self, text: str) -> str:
        """A prompt or question: `<image>` marks an image's place."""
        return self._but_image.sub(_fence, text)

    def value(self, text: str) -> str:
        """A column's value: `<image>` is seven characters."""
        return self._all.sub(_fence, text)


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)))


def _fence(match: re.Match[str]) -> str:
    # As codepoints, so that nothing of the special token is left for a template to trip over.
    return OPEN + ".".join(str(ord(c)) for c in match[0]) + CLOSE


_FENCED = re.compile(f"{OPEN}([0-9.]+){CLOSE}")


def split_guarded(text: str) -> list[tuple[str, bool]]:
    """(piece, is guarded) in order; guarded pieces are back as the characters they were."""
    pieces = _FENCED.split(text)
    return [
        ("".join(chr(int(c)) for c in piece.split(".")) if i % 2 else piece, bool(i % 2))
        for i, piece in enumerate(pieces)
        if piece
    ]


def unguarded(text: str) -> str:
    """The text as a person reads it, nothing fenced."""
    return "".join(piece for piece, _ in split_guarded(text))
