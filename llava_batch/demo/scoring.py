"""Whether an answer about a scene is right.

Captions are read by a pattern, so a caption in other words than the model's own scores as wrong;
answers count by their words, without case, spaces at the ends and a final dot.
"""

import re
from collections import Counter

from llava_batch.demo.questions import Question
from llava_batch.demo.scenes import COLOURS, SHAPES, SIZES, Scene, caption

_THING = re.compile(rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def score_caption(scene: Scene, text: str) -> tuple[bool, bool]:
    """(the caption word for word, the scene's things with size, colour and shape and no others)."""
    named = Counter(_THING.findall(text.lower()))
    there = Counter((thing.size, thing.colour, thing.shape) for thing in scene.things)
    return text.strip() == caption(scene), named == there


def score_answer(question: Question, text: str) -> bool:
    """Whether `text` is the question's answer."""
    return _plain(text) == _plain(question.answer)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
