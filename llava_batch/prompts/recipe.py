"""Recipes for instruction data: which prompts an image is asked, how, and what is sorted out after.

A recipe is a YAML file; those beside this module follow the three kinds of LLaVA-Instruct-150K
(arXiv 2304.08485) with prompts of their own, and are there to be copied and changed:

    recipe = load_recipe("conversation")          # or the path of a file
    draw(recipe, seed=0, id="00000/000000042")    # the turns for this image, always the same

LLaVA-Instruct had its answers written by a language model that read captions and boxes; here the
model sees the image, and a recipe draws its questions from lists. Columns in braces are filled by
whoever asks. A recipe knows nothing of models or images.
"""

import hashlib
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from typing import Any, get_args

import yaml

from llava_batch.errors import UsageError
from llava_batch.storage import locate, read_bytes


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Bounds that every turn of a row must keep; None switches a filter off.

    `min_words`, `max_words`: words of an answer. `max_repetition`: see `instruct.filters.repetition`.
    `min_mean_logprob`: of an answer's tokens. `max_similarity`: see `similarity`, against the kept
    answers to the same question about the same image. `refusals`: reject answers that decline.
    `unfinished`: reject answers that were cut at the token limit.
    """

    min_words: int = 1
    max_words: int | None = None
    max_repetition: float | None = None
    min_mean_logprob: float | None = None
    max_similarity: float | None = None
    refusals: bool = True
    unfinished: bool = True

    def __post_init__(self) -> None:
        if self.min_words < 0 or (self.max_words or self.min_words) < self.min_words:
            raise UsageError(
                f"filters: min_words {self.min_words} and max_words {self.max_words}: "
                "give 0 <= min_words <= max_words"
            )
        for name in ("max_repetition", "max_similarity"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise UsageError(f"filters: {name} {share}: give a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A list of prompts of which `draw` stand in a conversation, one turn each."""

    prompts: tuple[str, ...]
    draw: int = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to ask of each image and which answers to keep. `turns` are drawn from in order; more
    than one turn makes a dialogue. The sampling settings are what the recipe was written for; a
    run may override them."""

    name: str
    description: str
    turns: tuple[Pool, ...]
    system: str | None = None
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    filters: Filters = field(default_factory=Filters)

    @property
    def num_turns(self) -> int:
        """Turns of one conversation."""
        return sum(pool.draw for pool in self.turns)

    @property
    def dialogue(self) -> bool:
        """Whether the turns make one conversation, each answer in the context of the next."""
        return self.num_turns > 1

    @property
    def prompts(self) -> list[str]:
        """Every prompt that may be drawn, to check the columns in braces before a run."""
        return [prompt for pool in self.turns for prompt in pool.prompts]

    def as_json(self) -> dict[str, Any]:
        """All that the recipe says, defaults included, as plain JSON values; the same for two files
        that say the same, whatever their comments, their order of keys or their wording of numbers."""
        told: dict[str, Any] = _as_json(self)
        return told


def _as_json(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _as_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_as_json(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # YAML's 1 and 1.0 are one temperature
    return value


def draw(recipe: Recipe, seed: int, id: str) -> tuple[str, ...]:
    """The prompts of one image's conversation, one for each turn; no prompt twice.

    Drawn by hash, so that they depend on (seed, id) and the recipe's lists alone: not on the order
    of the images, the version of Python, or the order of a list; a prompt that is added to a list
    changes only the draws that it wins.
    """
    turns: list[str] = []
    for pool in recipe.turns:
        left = [prompt for prompt in pool.prompts if prompt not in turns]
        turns += sorted(left, key=lambda prompt: _ticket(seed, id, prompt))[: pool.draw]
    return tuple(turns)


def _ticket(seed: int, id: str, prompt: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{id}\0{prompt}".encode()).digest()


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    names = (entry.name for entry in (files("llava_batch.prompts") / "recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """The packaged recipe of that name, or the one in a `.yaml` file (a path or a URI).

    Raises:
        UsageError: no such recipe, a key that is not known, a value that cannot be used.
    """
    if name in recipe_names():
        data = (files("llava_batch.prompts") / "recipes" / f"{name}.yaml").read_bytes()
    elif name.endswith((".yaml", ".yml")):
        location = locate(name)
        found = read_bytes(location.fs, location.path)
        if found is None:
            raise UsageError(f"--recipe {name}: no such file")
        data = found
    else:
        raise UsageError(
            f"--recipe {name}: give one of {', '.join(recipe_names())}, or a .yaml file"
        )
    try:
        content = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--recipe {name}: not YAML ({' '.join(str(error).split())})") from None
    return _parse(content, f"--recipe {name}")


def _parse(content: Any, where: str) -> Recipe:
    values = _known(content, Recipe, where)
    pools = values.pop("turns", None)
    if not isinstance(pools, list) or not pools:
        raise UsageError(f"{where}: `turns` must be a list of prompts to draw from")
    turns = tuple(_pool(pool, f"{where}, turn {n}") for n, pool in enumerate(pools, 1))
    bounds = _known(values.pop("filters", {}), Filters, f"{where}, filters")
    try:
        filters = Filters(**bounds)
    except UsageError as error:
        raise UsageError(f"{where}, {error}") from None
    for name in ("name", "description"):
        if not isinstance(values.get(name), str) or not values[name]:
            raise UsageError(f"{where}: `{name}` must be a text")
    recipe = Recipe(turns=turns, filters=filters, **values)
    if len(set(recipe.prompts)) < len(recipe.prompts):
        raise UsageError(f"{where}: a prompt stands in it twice; a conversation asks it once")
    if recipe.dialogue and recipe.samples > 1:
        raise UsageError(f"{where}: samples {recipe.samples}: a dialogue has one sample")
    if recipe.samples > 1 and recipe.temperature == 0:
        raise UsageError(f"{where}: samples {recipe.samples} need a temperature over 0")
    return recipe


def _pool(content: Any, where: str) -> Pool:
    values = _known(content, Pool, where)
    prompts = values.pop("prompts", None)
    usable = isinstance(prompts, list) and all(isinstance(p, str) and p.strip() for p in prompts)
    if not prompts or not usable:
        raise UsageError(f"{where}: `prompts` must be a list of texts")
    pool = Pool(prompts=tuple(p.strip() for p in prompts), **values)
    if not 1 <= pool.draw <= len(pool.prompts):
        raise UsageError(f"{where}: draw {pool.draw} of {len(pool.prompts)} prompts")
    return pool


def _known(content: Any, kind: type, where: str) -> dict[str, Any]:
    """The keys of a YAML mapping, each a field of `kind` and, if plain, of that field's type."""
    if not isinstance(content, dict):
        raise UsageError(f"{where}: expected a mapping, found {content!r:.60}")
    known = {f.name: f.type for f in fields(kind)}
    for name, value in content.items():
        if name not in known:
            raise UsageError(f"{where}: unknown key {name!r}; give one of {', '.join(known)}")
        if name not in _NESTED and not _fits(value, known[name]):
            shown = getattr(known[name], "__name__", str(known[name]))
            raise UsageError(f"{where}: {name} {value!r}: expected {shown}")
    return dict(content)


_NESTED = ("turns", "prompts", "filters")  # checked where they are taken apart


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool):  # Python takes a bool for an int
        return wanted is bool
    numbers = (wanted | int) if wanted is float or float in get_args(wanted) else wanted
    return isinstance(value, numbers)
