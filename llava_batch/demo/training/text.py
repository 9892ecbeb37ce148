"""The text side of training: conversations about a scene, in LLaVA-1.5's format.

`USER: <image>\\n{question} ASSISTANT: {answer}</s>`, further turns
`USER: {question} ASSISTANT: {answer}</s>`; one BOS before it all, set by the tokenizer.
Besides plain questions the conversations hold what jobs do with prompts: the evaluation's
system text and its "single word or phrase" line, alt text before the caption prompt, several
unrelated questions as turns.
"""

from collections.abc import Iterator
from random import Random

from llava_batch.demo.questions import CAPTION_PROMPTS, TYPES, Question, ask, dialogue
from llava_batch.demo.scenes import Scene, caption, make_scene

EOS = "</s>"
PAD = "<pad>"
IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
TYPE_WEIGHTS = {"relation": 3.0, "relation_yes_no": 3.0, "size": 2.0, "position": 2.0}
BY_SIZE_WEIGHT = 6.0  # of a question that may have to tell alike things apart by their size
_ALT_TEXTS = ("photo", "image", "IMG_0412.jpg", "stock picture, free download", "shapes", "art")


def turn_text(question: str, *, first: bool) -> str:
    """The prompt of one turn, from behind what stands before it to `ASSISTANT:`."""
    return f"\n{question} ASSISTANT:" if first else f"USER: {question} ASSISTANT:"


def render(turns: tuple[Question, ...]) -> str:
    """A conversation behind its image mark."""
    return "".join(
        f"{turn_text(turn.question, first=number == 0)} {turn.answer}{EOS}"
        for number, turn in enumerate(turns)
    )


def conversations(
    scene: Scene, random: Random, *, max_turns: int
) -> Iterator[tuple[Question, ...]]:
    """Conversations of one to three turns about the scene, `max_turns` turns or a few more."""
    num_turns = 0
    if random.random() < 0.85:
        opening: tuple[Question, ...] = (_caption_turn(scene, random),)
        if random.random() < 0.25:
            opening = opening + _unrelated(scene, random, 1)
        if random.random() < 0.15:
            opening = opening[::-1]
        yield opening
        num_turns += len(opening)
    while num_turns < max_turns:
        turns = dialogue(scene, random=random) if random.random() < 0.3 else ()
        turns = turns or _unrelated(scene, random, random.choice((1, 1, 1, 2, 3)))
        yield turns
        num_turns += len(turns)


def _caption_turn(scene: Scene, random: Random) -> Question:
    prompt = CAPTION_PROMPTS[0] if random.random() < 0.6 else random.choice(CAPTION_PROMPTS)
    if random.random() < 0.12:
        prompt = f"Alt text: {_alt_text(scene, random)}. {prompt}"
    return Question(type="caption", question=prompt, answer=caption(scene))


def _alt_text(scene: Scene, random: Random) -> str:
    """True, false or empty words: what is in the picture must come from the picture."""
    if random.random() < 0.4:
        return random.choice(_ALT_TEXTS)
    shown = scene if random.random() < 0.5 else make_scene(random.randrange(2**31))
    return caption(shown).rstrip(".")


def _unrelated(scene: Scene, random: Random, count: int) -> tuple[Question, ...]:
    turns: list[Question] = []
    weights = _weights(scene)
    short = SHORT_ANSWER if random.random() < 0.12 else ""
    while len(turns) < count:
        found = ask(random.choices(TYPES, weights)[0], scene, random)
        if found is not None:
            question = found.question + short
            turns.append(Question(type=found.type, question=question, answer=found.answer))
    return tuple(turns)


def _weights(scene: Scene) -> list[float]:
    """How often each type is asked. What is rare and hard comes more often than it would."""
    weights = {type_: TYPE_WEIGHTS.get(type_, 1.0) for type_ in TYPES}
    if len({thing.shape for thing in scene.things}) < len(scene.things):
        weights["colour"] = BY_SIZE_WEIGHT
    if len({thing.colour for thing in scene.things}) < len(scene.things):
        weights["shape"] = BY_SIZE_WEIGHT
    return list(weights.values())
