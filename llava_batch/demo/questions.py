"""Questions about a scene with their true answers, and short dialogues that hang together.

Answers are one lower-case word or digit. A question is only asked where its answer is clear: a
shape or colour is asked of the one thing that its description fits, a relation where the distance
along its axis is at least `CLEAR`. In a dialogue the second turn says "it", and the things of the
scene differ in what is asked, so that it can't be answered without the first.

American and British spellings ("color", "colour") both occur. What is not here: counting beyond
three, comparisons of more than two things, negation, anything a scene does not show.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from llava_batch.demo.scenes import COLOURS, SHAPES, Scene, Thing, stream

CLEAR = 0.2  # short sides
DOMINANT = 1.6  # how much longer than the other axis the one is along which a relation is named

CAPTION_PROMPTS = (
    "Describe the image.",
    "Describe this image briefly.",
    "What is in this picture?",
    "Write a caption for this image.",
)


@dataclass(frozen=True, kw_only=True)
class Question:
    type: str
    question: str
    answer: str


def questions(scene: Scene, *, random: Random | None = None) -> tuple[Question, ...]:
    """One question of each type that the scene allows, worded by `random` (default: the seed's)."""
    random = random or stream(scene.seed, "questions")
    asked = (ask(type_, scene, random) for type_ in TYPES)
    return tuple(question for question in asked if question is not None)


def ask(type_: str, scene: Scene, random: Random) -> Question | None:
    """A question of one of `TYPES`, or None where the scene has no clear answer to that type."""
    found = _ASKERS[type_](scene, random)
    return None if found is None else Question(type=type_, question=found[0], answer=found[1])


def dialogue(scene: Scene, *, random: Random | None = None) -> tuple[Question, ...]:
    """Two or three turns about one thing; empty where "it" would need no first turn to be known.

    The second turn's type is `dialogue`; the first's and third's are those of its kind.
    """
    random = random or stream(scene.seed, "dialogue")
    opened = _opening(scene, random)
    if opened is None:
        return ()
    first, subject, told = opened
    facts = [
        fact
        for fact in ("colour", "shape", "size")
        if fact not in told and len({getattr(thing, fact) for thing in scene.things}) > 1
    ]
    if not facts:
        return ()
    random.shuffle(facts)
    turns = [first, _about_it(facts[0], subject, random, "dialogue")]
    if len(facts) > 1 and random.random() < 0.6:
        turns.append(_about_it(facts[1], subject, random, facts[1]))
    return tuple(turns)


def _opening(scene: Scene, random: Random) -> tuple[Question, Thing, set[str]] | None:
    """A first turn, the thing that it settles on, and the facts of it that are then told."""
    if random.random() < 0.6:
        side = _clear_side(scene, random)
        if side is None:
            return None
        words, thing = side
        fact = random.choice(("shape", "colour"))
        first = Question(
            type="position", question=_at_side(fact, words, random), answer=getattr(thing, fact)
        )
        return first, thing, {fact}
    thing = random.choice(scene.things)
    text, answer = random.choice((_colour_of, _shape_of))(scene, thing, random) or ("", "")
    if not text:
        return None
    fact = "colour" if answer == thing.colour else "shape"
    told = {
        name
        for name in ("colour", "shape", "size")
        if getattr(thing, name) in text.rstrip("?").split()
    }
    return Question(type=fact, question=text, answer=answer), thing, told | {fact}


def _about_it(fact: str, thing: Thing, random: Random, type_: str) -> Question:
    texts = {
        "colour": ("What colour is it?", "What color is it?"),
        "shape": ("What shape is it?", "Which shape is it?"),
        "size": ("Is it large or small?", "What size is it?"),
    }
    return Question(
        type=type_, question=random.choice(texts[fact]), answer=str(getattr(thing, fact))
    )


Asked = tuple[str, str] | None


def _spelled(random: Random) -> str:
    return random.choice(("colour", "color"))


def _only(scene: Scene, **facts: str) -> bool:
    """Whether exactly one thing has these facts."""
    fits = [all(getattr(thing, k) == v for k, v in facts.items()) for thing in scene.things]
    return sum(fits) == 1


def _colour_of(scene: Scene, thing: Thing, random: Random) -> Asked:
    if _only(scene, shape=thing.shape):
        return f"What {_spelled(random)} is the {thing.shape}?", thing.colour
    if _only(scene, shape=thing.shape, size=thing.size):
        return f"What {_spelled(random)} is the {thing.size} {thing.shape}?", thing.colour
    return None


def _shape_of(scene: Scene, thing: Thing, random: Random) -> Asked:
    word = random.choice(("What", "Which"))
    if _only(scene, colour=thing.colour):
        return f"{word} shape is the {thing.colour} object?", thing.shape
    if _only(scene, colour=thing.colour, size=thing.size):
        return f"{word} shape is the {thing.size} {thing.colour} object?", thing.shape
    return None


def _colour(scene: Scene, random: Random) -> Asked:
    return _colour_of(scene, random.choice(scene.things), random)


def _shape(scene: Scene, random: Random) -> Asked:
    return _shape_of(scene, random.choice(scene.things), random)


def _size(scene: Scene, random: Random) -> Asked:
    thing = random.choice(scene.things)
    name = thing.name
    if random.random() < 0.3 and _only(scene, shape=thing.shape):
        name = thing.shape
    texts = (f"Is the {name} large or small?", f"What size is the {name}?")
    return random.choice(texts), thing.size


def _count(scene: Scene, random: Random) -> Asked:
    texts = ("How many objects are there?", "How many shapes are in the picture?")
    return random.choice(texts), str(len(scene.things))


def _count_of(scene: Scene, random: Random) -> Asked:
    fact = random.choice(("shape", "colour"))
    value = random.choice(SHAPES if fact == "shape" else tuple(COLOURS))
    if random.random() < 0.75:
        value = getattr(random.choice(scene.things), fact)
    named = _plural(value) if fact == "shape" else f"{value} objects"
    number = sum(getattr(thing, fact) == value for thing in scene.things)
    return f"How many {named} are there?", str(number)


def _plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _existence(scene: Scene, random: Random) -> Asked:
    truth = random.random() < 0.5
    kind = random.choice(("name", "name", "shape", "colour"))
    named = {
        "name": [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES],
        "shape": list(SHAPES),
        "colour": list(COLOURS),
    }[kind]
    seen = {getattr(thing, kind) for thing in scene.things}
    choices = [name for name in named if (name in seen) == truth]
    if kind == "name" and not truth and random.random() < 0.6:
        # Near misses are what makes the question hard: one of the two attributes is there.
        words = {word for name in seen for word in name.split()}
        choices = [name for name in choices if words & set(name.split())]
    value = random.choice(choices)
    article = "an" if value[0] in "aeiou" else "a"
    thing = f"{value} object" if kind == "colour" else value
    return f"Is there {article} {thing}?", "yes" if truth else "no"


def _background(scene: Scene, random: Random) -> Asked:
    spelled = _spelled(random)
    texts = (f"What {spelled} is the background?", f"What is the {spelled} of the background?")
    return random.choice(texts), scene.background


def _clear_side(scene: Scene, random: Random) -> tuple[str, Thing] | None:
    """A side, and the thing that is clearly nearest to it."""
    sides: tuple[tuple[str, Callable[[Thing], float]], ...] = (
        ("on the left", lambda thing: thing.x),
        ("on the right", lambda thing: -thing.x),
        ("at the top", lambda thing: thing.y),
        ("at the bottom", lambda thing: -thing.y),
    )
    words, key = random.choice(sides)
    near, *others = sorted(scene.things, key=key)
    if not others or key(others[0]) - key(near) < CLEAR:
        return None
    return words, near


def _at_side(fact: str, words: str, random: Random) -> str:
    if fact == "shape":
        return random.choice((f"Which shape is {words}?", f"What shape is {words}?"))
    return f"What {_spelled(random)} is the object {words}?"


def _position(scene: Scene, random: Random) -> Asked:
    side = _clear_side(scene, random)
    if side is None:
        return None
    fact = random.choice(("shape", "colour"))
    return _at_side(fact, side[0], random), getattr(side[1], fact)


def _pair(scene: Scene, random: Random) -> tuple[Thing, Thing] | None:
    if len(scene.things) < 2:
        return None
    one, other = random.sample(scene.things, 2)
    return one, other


def _relation(scene: Scene, random: Random) -> Asked:
    pair = _pair(scene, random)
    if pair is None:
        return None
    one, other = pair
    dx, dy = one.x - other.x, one.y - other.y
    text = f"Where is the {one.name} relative to the {other.name}?"
    if abs(dx) >= CLEAR and abs(dx) >= DOMINANT * abs(dy):
        return text, "left" if dx < 0 else "right"
    if abs(dy) >= CLEAR and abs(dy) >= DOMINANT * abs(dx):
        return text, "above" if dy < 0 else "below"
    return None


def _relation_yes_no(scene: Scene, random: Random) -> Asked:
    pair = _pair(scene, random)
    if pair is None:
        return None
    one, other = pair
    axis = random.choice("xy")
    step = getattr(one, axis) - getattr(other, axis)
    if abs(step) < CLEAR:
        return None
    before = random.random() < 0.5
    words = {"x": ("to the left of", "to the right of"), "y": ("above", "below")}[axis]
    text = f"Is the {one.name} {words[0] if before else words[1]} the {other.name}?"
    return text, "yes" if (step < 0) == before else "no"


_ASKERS: dict[str, Callable[[Scene, Random], Asked]] = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "count": _count,
    "count_of": _count_of,
    "existence": _existence,
    "background": _background,
    "position": _position,
    "relation": _relation,
    "relation_yes_no": _relation_yes_no,
}
TYPES = tuple(_ASKERS)
