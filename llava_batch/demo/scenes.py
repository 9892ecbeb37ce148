"""Scenes of coloured shapes: drawn from a seed, with the caption that is true of each.

A scene is plain data; `draw` turns it into a picture of any size. Everything about it follows from
its seed alone, through named random streams, so that a change to one stream leaves the others be.
Lengths are in units of the picture's short side, x to the right and y down.

By construction, so that every fact has one clear answer: no two objects share both shape and
colour, none overlap or touch the edge, large and small are a factor of two apart, and no two
centres are nearly above one another (`MIN_STEP_X`), so that "from left to right" is an order.

Held-out scenes have seeds from `HELD_OUT` on; training uses seeds below `NUM_TRAINING_SEEDS`.
The module does not know the questions (questions.py) nor how answers are scored (scoring.py).
"""

import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (222, 45, 48),
    "orange": (247, 140, 20),
    "yellow": (250, 218, 40),
    "green": (46, 168, 76),
    "blue": (38, 96, 230),
    "purple": (136, 58, 176),
}
BACKGROUNDS = {
    "white": (250, 250, 248),
    "black": (22, 22, 26),
    "gray": (166, 168, 172),
    "beige": (238, 219, 188),
    "pink": (250, 196, 212),
}
SIZES = {"large": (0.19, 0.215), "small": (0.09, 0.105)}  # half extent, in short sides
NUM_TRAINING_SEEDS = 2**31
HELD_OUT = 2**40
MIN_STEP_X = 0.12
GAP = 0.03  # least distance between two objects, and between an object and the edge
SUPERSAMPLING = 4


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: `x`, `y` its centre and `radius` its half extent, in short sides."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One to three things on a background, ordered from left to right.

    `width` and `height` are the canvas in short sides: (1, 1) is a square picture.
    """

    seed: int
    background: str
    width: float
    height: float
    things: tuple[Thing, ...]


def stream(seed: int, name: str) -> Random:
    """A random stream of its own for each purpose, the same on every platform."""
    return Random(f"{name}:{seed}")


def make_scene(seed: int, *, num_things: int | None = None, aspect: float | None = None) -> Scene:
    """The scene of `seed`; `num_things` (1 to 3) and `aspect` (width by height) can be fixed."""
    if num_things is not None and not 1 <= num_things <= 3:
        raise ValueError(f"num_things={num_things}: a scene holds one to three things")
    if aspect is not None and not 0.5 <= aspect <= 2.0:
        raise ValueError(f"aspect={aspect}: give a width by height between 0.5 and 2")
    random = stream(seed, "layout")
    count = random.choice((1, 2, 2, 3, 3))
    shape = random.choice((1.0, 1.0, 1.0, 4 / 3, 3 / 4, random.uniform(0.75, 4 / 3)))
    aspect = shape if aspect is None else aspect
    width, height = max(aspect, 1.0), max(1 / aspect, 1.0)
    background = random.choice(tuple(BACKGROUNDS))
    things: list[Thing] | None = None
    while things is None:
        things = _place(random, num_things or count, width, height)
    ordered = tuple(sorted(things, key=lambda thing: thing.x))
    return Scene(seed=seed, background=background, width=width, height=height, things=ordered)


def _place(random: Random, count: int, width: float, height: float) -> list[Thing] | None:
    """`count` things that keep their distances, or None where the dice left no room."""
    things: list[Thing] = []
    for _ in range(count * 12):
        thing = _any_thing(random, width, height)
        if all(_apart(thing, other) for other in things):
            things.append(thing)
        if len(things) == count:
            return things
    return None


def _any_thing(random: Random, width: float, height: float) -> Thing:
    size = random.choice(tuple(SIZES))
    radius = random.uniform(*SIZES[size])
    edge = radius + GAP
    return Thing(
        shape=random.choice(SHAPES),
        colour=random.choice(tuple(COLOURS)),
        size=size,
        x=random.uniform(edge, width - edge),
        y=random.uniform(edge, height - edge),
        radius=radius,
    )


def _apart(one: Thing, other: Thing) -> bool:
    distance = math.hypot(one.x - other.x, one.y - other.y)
    return (
        one.name != other.name
        and abs(one.x - other.x) >= MIN_STEP_X
        and distance >= one.radius + other.radius + GAP
    )


def draw(scene: Scene, *, short_side: int = 112) -> Image.Image:
    """The picture, RGB, `short_side` pixels on its short side, drawn larger and reduced."""
    random = stream(scene.seed, "tint")
    scale = short_side * SUPERSAMPLING
    width, height = round(scene.width * short_side), round(scene.height * short_side)
    canvas = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    image = Image.new("RGB", canvas, _tint(BACKGROUNDS[scene.background], random))
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(pen, thing, scale, _tint(COLOURS[thing.colour], random))
    return image.reduce(SUPERSAMPLING)


def draw_index(scene: Scene, *, short_side: int = 112) -> Image.Image:
    """The same picture in mode L: 0 for the background, n for the n-th thing. Not smoothed."""
    size = (round(scene.width * short_side), round(scene.height * short_side))
    image = Image.new("L", size, 0)
    pen = ImageDraw.Draw(image)
    for number, thing in enumerate(scene.things, start=1):
        _draw_thing(pen, thing, short_side, number)
    return image


def _tint(colour: tuple[int, int, int], random: Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + random.randint(-8, 8))) for value in colour)
    return red, green, blue


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, scale: float, fill: object) -> None:
    x, y, radius = thing.x * scale, thing.y * scale, thing.radius * scale
    if thing.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)  # type: ignore[arg-type]
        return
    points = [(x + dx * radius, y + dy * radius) for dx, dy in _OUTLINES[thing.shape]]
    pen.polygon(points, fill=fill)  # type: ignore[arg-type]


def _star(points: int, inner: float) -> tuple[tuple[float, float], ...]:
    turns = [math.pi * step / points for step in range(2 * points)]
    reach = [1.0 if step % 2 == 0 else inner for step in range(2 * points)]
    return tuple((r * math.sin(a), -r * math.cos(a)) for r, a in zip(reach, turns, strict=True))


_ARM = 0.36
_OUTLINES = {
    "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    "triangle": ((0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)),
    "star": _star(5, 0.42),
    "cross": (
        *((-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM)),
        *((_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM)),
    ),
}


def caption(scene: Scene) -> str:
    """One sentence that names every thing from left to right, and the background."""
    phrases = [f"a {thing.size} {thing.name}" for thing in scene.things]
    listed = " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
    return f"{listed[0].upper()}{listed[1:]} on a {scene.background} background."
