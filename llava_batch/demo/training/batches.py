"""Training batches: scenes as pixels and packed token ids, each batch a function of (seed, step).

Packing: all conversations of a picture share one image prefix. A row is the prefix and then the
conversations one after another, each of which sees the prefix and itself only and counts its
positions on from the prefix, so that every one of them is learnt as if it stood alone.

Shapes: B pictures, L tokens a row, N = 64 patches.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from llava_batch.demo.questions import Question
from llava_batch.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    NUM_TRAINING_SEEDS,
    SHAPES,
    SIZES,
    Scene,
    draw,
    draw_index,
    make_scene,
)
from llava_batch.demo.training.build import IMAGE_SIZE, NUM_IMAGE_TOKENS, PATCH_SIZE
from llava_batch.demo.training.text import EOS, IMAGE, SYSTEM, conversations, turn_text

MEAN_COLOUR = (122, 116, 104)  # CLIP's mean, as the processor pads with it
NUM_TOKENS = 200  # a row: about 68 of the prefix, the rest for conversations
MAX_TURNS = 8
ALIKE_SHARE = 0.4  # of pictures drawn until they hold alike things of different sizes
SHORT_ANSWER_WEIGHT = 2.0
MIN_LABEL_PIXELS = 24  # of a patch's 196, for the patch to count as showing a thing
# Classes of each patch label; for the first four, 0 is "nothing here". The patch's own row and
# column are there so that the tower keeps them: colours and shapes alone let it forget where it is.
PATCH_LABELS = {
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "size": len(SIZES) + 1,
    "centre": 2,
    "background": len(BACKGROUNDS),
    "row": IMAGE_SIZE // PATCH_SIZE,
    "column": IMAGE_SIZE // PATCH_SIZE,
}


@dataclass(kw_only=True)
class PackedBatch:
    """`segments` is 0 in the prefix, n in the n-th conversation, -1 in padding.

    `weights` [B, L] says how much the token counts as a target (0: part of a prompt).
    """

    pixels: torch.Tensor  # uint8 [B, 3, 112, 112]
    ids: torch.Tensor  # int64 [B, L]
    positions: torch.Tensor  # int64 [B, L]
    segments: torch.Tensor  # int64 [B, L]
    weights: torch.Tensor  # float32 [B, L]
    image_slots: torch.Tensor  # int64 [64]: where the image tokens stand, in each row


def picture(scene: Scene, random: Random) -> Image.Image:
    """The scene as the image processor would hand it on: 112 x 112, from a canvas of some size."""
    return squared(_degraded(draw(scene, short_side=_short_side(random)), random))


def _short_side(random: Random) -> int:
    return random.choice((112, 112, 112, 160, 224, 280))


def _degraded(image: Image.Image, random: Random) -> Image.Image:
    if random.random() < 0.7:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=random.randint(70, 95))
    return Image.open(buffer)


def squared(image: Image.Image, fill: object = MEAN_COLOUR, resample: int = 3) -> Image.Image:
    """Padded to a square and resized to 112, as the model's processor does it."""
    side = max(image.size)
    square = Image.new(image.mode, (side, side), fill)  # type: ignore[arg-type]
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling(resample))


def patch_labels(scene: Scene) -> np.ndarray:
    """int64 [64, 7]: what each patch shows, in the order of `PATCH_LABELS`."""
    index = np.asarray(squared(draw_index(scene, short_side=2 * IMAGE_SIZE), 0, 0))
    side = IMAGE_SIZE // PATCH_SIZE
    patches = index.reshape(side, PATCH_SIZE, side, PATCH_SIZE).swapaxes(1, 2).reshape(-1, 196)
    labels = np.zeros((len(patches), len(PATCH_LABELS)), np.int64)
    labels[:, 4] = tuple(BACKGROUNDS).index(scene.background)
    labels[:, 5], labels[:, 6] = np.divmod(np.arange(len(patches)), side)
    most = np.full(len(patches), MIN_LABEL_PIXELS)
    for number, thing in enumerate(scene.things, start=1):
        covered = (patches == number).sum(1)
        facts = (
            1 + tuple(COLOURS).index(thing.colour),
            1 + SHAPES.index(thing.shape),
            1 + tuple(SIZES).index(thing.size),
        )
        labels[covered >= most, :3] = facts
        most = np.maximum(most, covered)
        labels[_patch_of(scene, thing.x, thing.y), 3] = 1
    return labels


def _patch_of(scene: Scene, x: float, y: float) -> int:
    longest = max(scene.width, scene.height)
    side = IMAGE_SIZE // PATCH_SIZE
    column = int((x + (longest - scene.width) / 2) / longest * side)
    row = int((y + (longest - scene.height) / 2) / longest * side)
    return row * side + column


class PatchBatches(IterableDataset):  # type: ignore[misc]
    """Yields (pixels uint8 [B, 3, 112, 112], labels int64 [B, 64, 7])."""

    def __init__(self, *, seed: int, num_steps: int, batch_size: int) -> None:
        self.seed, self.num_steps, self.batch_size = seed, num_steps, batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(self.num_steps):
            random = Random(f"patches:{self.seed}:{step}")
            scenes = _scenes(random, self.batch_size)
            labels = np.stack([patch_labels(scene) for scene in scenes])
            yield _pixels(scenes, random), torch.from_numpy(labels)


class PackedBatches(IterableDataset):  # type: ignore[misc]
    """Yields `PackedBatch`, each of the same shape."""

    def __init__(
        self, *, tokenizer: PreTrainedTokenizerFast, seed: int, num_steps: int, batch_size: int
    ) -> None:
        self.tokenizer = tokenizer
        self.seed, self.num_steps, self.batch_size = seed, num_steps, batch_size
        self._cache: dict[str, list[int]] = {}

    def __iter__(self) -> Iterator[PackedBatch]:
        for step in range(self.num_steps):
            random = Random(f"packed:{self.seed}:{step}")
            yield self._batch(_scenes(random, self.batch_size), random)

    def _batch(self, scenes: list[Scene], random: Random) -> PackedBatch:
        system = SYSTEM if random.random() < 0.12 else ""
        prefix = self.tokenizer(f"{system}USER: ").input_ids
        image_id = self.tokenizer.convert_tokens_to_ids(IMAGE)
        image_slots = torch.arange(len(prefix), len(prefix) + NUM_IMAGE_TOKENS)
        prefix = prefix + [image_id] * NUM_IMAGE_TOKENS
        size = (len(scenes), NUM_TOKENS)
        ids = np.full(size, self.tokenizer.pad_token_id, np.int64)
        positions = np.zeros(size, np.int64)
        segments = np.full(size, -1, np.int64)
        weights = np.zeros(size, np.float32)
        ids[:, : len(prefix)] = prefix
        positions[:, : len(prefix)] = range(len(prefix))
        segments[:, : len(prefix)] = 0
        for row, scene in enumerate(scenes):
            at = len(prefix)
            turns = conversations(scene, random, max_turns=MAX_TURNS)
            for number, conversation in enumerate(turns, start=1):
                tokens, counts = self._encode(conversation)
                end = at + len(tokens)
                if end > NUM_TOKENS:
                    continue
                ids[row, at:end] = tokens
                positions[row, at:end] = range(len(prefix), len(prefix) + len(tokens))
                segments[row, at:end] = number
                weights[row, at:end] = counts
                at = end
        return PackedBatch(
            pixels=_pixels(scenes, random),
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            segments=torch.from_numpy(segments),
            weights=torch.from_numpy(weights),
            image_slots=image_slots,
        )

    def _encode(self, turns: tuple[Question, ...]) -> tuple[list[int], list[float]]:
        """Token ids behind the image, and how much each counts as a target."""
        tokens: list[int] = []
        weights: list[float] = []
        for number, turn in enumerate(turns):
            prompt = self._ids(turn_text(turn.question, first=number == 0))
            answer = self._ids(f" {turn.answer}{EOS}")
            tokens += prompt + answer
            weight = 1.0 if turn.type == "caption" else SHORT_ANSWER_WEIGHT
            weights += [0.0] * len(prompt) + [weight] * len(answer)
        return tokens, weights

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            if len(self._cache) > 50_000:
                self._cache.clear()
            self._cache[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self._cache[text]


def _scenes(random: Random, count: int) -> list[Scene]:
    return [_scene(random, alike=random.random() < ALIKE_SHARE) for _ in range(count)]


def _scene(random: Random, *, alike: bool) -> Scene:
    while True:
        scene = make_scene(random.randrange(NUM_TRAINING_SEEDS))
        if not alike or has_alike(scene):
            return scene


def has_alike(scene: Scene) -> bool:
    """Whether two things of different sizes share their shape or their colour."""
    return any(
        one.size != other.size and (one.shape == other.shape or one.colour == other.colour)
        for one, other in itertools.combinations(scene.things, 2)
    )


def _pixels(scenes: list[Scene], random: Random) -> torch.Tensor:
    pixels = np.stack([np.asarray(picture(scene, random)) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
