"""From pixels to image features: transformers' tower and projector, and LLaVA's own way through them.

What a family does otherwise stands in its file beside this one, in a class derived from `Vision`;
`families` says whose is whose. All have this interface, and nothing else of the engine knows a tower.
Legend: N images, t tiles of one image, P features of a tile, T features of an image, C hidden size.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from llava_batch.engine.device import on_device
from llava_batch.engine.request import Image
from llava_batch.engine.views import joined

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What the checkpoint's image processor does after resizing: rescale, then mean and std."""

    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD


class Vision:
    """LLaVA's: every image is one tile at the tower's own size, and has a feature for each patch."""

    def __init__(self, model: PreTrainedModel, normalisation: Normalisation) -> None:
        """Takes the model over: layers behind the last one that is read are dropped."""
        config: Any = model.config
        inner: Any = model.model
        self.config, self.inner = config, inner
        weight: Any = model.get_input_embeddings().weight
        self.dtype, self.device = weight.dtype, weight.device
        self.image_size: int = config.vision_config.image_size
        self.features_per_tile = features_per_tile(config)
        self.layers = layers_read(config)
        self._cut = cut_tower(inner.vision_tower, config, max(self.layers))
        scale = torch.tensor(normalisation.rescale_factor, dtype=torch.float32)
        self._scale = scale.to(self.device)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(normalisation.image_mean, device=self.device).view(shape)
        self._std = torch.tensor(normalisation.image_std, device=self.device).view(shape)

    def attention(self, name: str) -> str:
        """What transformers calls the tower's attention on a card whose kernels want this one."""
        return name

    def why_not(self, image: Image) -> str | None:
        """Why an image is none of this family's, or None."""
        if image.grid is not None or image.pixels.shape[0] != 1:
            return "an image is cut into tiles; this model takes images whole"
        return self.why_not_tiles(image.pixels)

    def why_not_tiles(self, pixels: Any) -> str | None:
        """Why tiles `[t, 3, H, W]` cannot be the tower's, or None."""
        shape, expected = tuple(pixels.shape), (3, self.image_size, self.image_size)
        if len(shape) != 4 or shape[1:] != expected or "uint8" not in str(pixels.dtype):
            return f"pixels are {pixels.dtype} {shape}, must be uint8 {('N', *expected)}"
        return None

    def num_tokens(self, image: Image) -> int:
        """T: how many image tokens a prompt has for this image."""
        return self.features_per_tile

    def num_patches(self, image: Image) -> int:
        """What an image costs the tower: its tiles' features in all."""
        return int(image.pixels.shape[0]) * self.features_per_tile

    def encode(self, images: list[Image], *, most_patches: int) -> list[torch.Tensor]:
        """Features `[T, C]` of each image.

        most_patches: of the tower in one pass, unless a single tile has more.
        """
        pixels = on_device(np.concatenate([image.pixels for image in images]), self.device)
        most_tiles = max(1, most_patches // self.features_per_tile)
        # Chunks of whole images where one holds them; a long image by itself is taken in several.
        tiles = joined([self.features(part) for part in pixels.split(most_tiles)])
        parts = tiles.split([int(image.pixels.shape[0]) for image in images])
        return [self.assembled(part, image) for part, image in zip(parts, images, strict=True)]

    def assembled(self, tiles: torch.Tensor, image: Image) -> torch.Tensor:
        """The tiles' features `[t, P, C]` as those of their image, `[T, C]`."""
        return tiles[0]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tiles in uint8 `[t, 3, H, W]` -> features `[t, P, C]`."""
        with self._no_tf32():
            hidden = self.hidden(self.normalise(pixels))
        features: torch.Tensor = self.inner.multi_modal_projector(hidden)
        return features

    def hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the projector reads, `[t, P, C of the tower x layers]`."""
        states = self.states(pixel_values)
        if self.drops_first:
            states = [state[:, 1:] for state in states]
        return torch.cat(states, dim=-1) if len(states) > 1 else states[0].contiguous()

    @property
    def drops_first(self) -> bool:
        """Whether the first feature, CLIP's class token, is left out."""
        strategy: str = self.config.vision_feature_select_strategy
        return strategy == "default"

    def states(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The hidden states of the layers that are read, in the order that the config names them."""
        tower = self.inner.vision_tower
        if self._cut and len(self.layers) == 1:
            return [last_of_clip(getattr(tower, "vision_model", tower), pixel_values)]
        found = tower(pixel_values, output_hidden_states=True).hidden_states
        asked = self.config.vision_feature_layer
        as_said = [asked] if isinstance(asked, int) else asked
        return [found[layer] for layer in (self.layers if self._cut else as_said)]

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 `[t, 3, H, W]` -> the model's dtype, in the order of the reference processor."""
        scaled = pixels.to(self.device).float() * self._scale
        return ((scaled - self._mean) / self._std).to(self.dtype)

    def _no_tf32(self) -> AbstractContextManager[None]:
        """float32 means float32: cuDNN would take the tower's convolution in TF32."""
        if self.dtype == torch.float32 and self.device.type == "cuda":
            exact: AbstractContextManager[None] = torch.backends.cudnn.flags(
                enabled=False, allow_tf32=False
            )
            return exact
        return nullcontext()


def last_of_clip(tower: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """What comes out of CLIP's last layer, `[t, T, C]`, without what transformers makes of it besides."""
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    last: torch.Tensor = tower.encoder(inputs_embeds=hidden).last_hidden_state
    return last


def features_per_tile(config: Any) -> int:
    """P: patches, and a class token where the tower has one (SigLIP's has none); the `default`
    strategy, and VipLLaVA's without a name, drop the first of them."""
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    class_token: bool = vision.model_type == "clip_vision_model"
    dropped: bool = getattr(config, "vision_feature_select_strategy", "default") == "default"
    return patches + class_token - dropped


def features_per_image(config: Any) -> int:
    """Features of a large image, newlines not counted: of one that fills the largest grid that is kept whole,
    where the family cuts images into tiles."""
    grids = getattr(config, "image_grid_pinpoints", None)
    if not grids:
        return features_per_tile(config)
    side = config.vision_config.image_size
    tiles = max((height // side) * (width // side) for height, width in grids)
    bound = getattr(config, "vision_aspect_ratio", "").removeprefix("anyres_max_")
    kept: int = min(tiles, int(bound)) if bound else tiles
    return features_per_tile(config) * (1 + kept)


def layers_read(config: Any) -> list[int]:
    """Which hidden states are read: 0 is the embedding's, k comes out of layer k."""
    asked, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layers = [asked] if isinstance(asked, int) else list(asked)
    return [layer if layer >= 0 else depth + 1 + layer for layer in layers]


def cut_tower(tower: Any, config: Any, last: int) -> bool:
    """Drop CLIP's layers behind the last one that is read; False for towers that must run whole."""
    if config.vision_config.model_type != "clip_vision_model":
        return False
    encoder = getattr(tower, "vision_model", tower).encoder
    encoder.layers = encoder.layers[:last]
    return True


def read_normalisation(files: list[Path]) -> Normalisation:
    """From the first of the processor's files that says; CLIP's own figures where none does."""
    for path in files:
        loaded = json.loads(path.read_text())
        settings = loaded.get("image_processor", loaded)
        if "image_mean" in settings:
            return Normalisation(
                rescale_factor=settings.get("rescale_factor", 1 / 255),
                image_mean=tuple(settings["image_mean"]),
                image_std=tuple(settings["image_std"]),
            )
    return Normalisation()
