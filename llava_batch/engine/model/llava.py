"""The one file that knows LLaVA: transformers' model, its tower, its image tokens, its settings.

Legend: N images, T tokens an image, C hidden size, B rows, Q their left-padded length, V vocabulary.
The model classes are transformers' own. The engine takes the model over: its attention is set to
the slots' and the vision layers behind the one that LLaVA reads are dropped.
"""

import copy
import json
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from llava_batch.engine.cache import SlotCache
from llava_batch.engine.kernels import choose, interface
from llava_batch.engine.kernels.contract import Place
from llava_batch.engine.model import supported
from llava_batch.engine.model.quantize import is_quantized
from llava_batch.engine.passes import Pass

log = logging.getLogger(__name__)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What the checkpoint's image processor does after resizing: rescale, then mean and std."""

    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD


class Llava:
    """A LlavaForConditionalGeneration, cut into the engine's verbs."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        normalisation: Normalisation,
        attention: str = "auto",
    ) -> None:
        """attention: one of `choose.NAMES`; `auto` is the best that can be had here."""
        supported.refuse(model.config)
        take_over(model)
        own_configs(model)
        interface.register()
        self.model = model
        config: Any = model.config
        self.config = config
        self.text_config: Any = config.text_config
        self.language_model = model.model.language_model
        self.embed_tokens: Any = model.get_input_embeddings()
        set_attention(self.language_model, interface.NAME)
        weight: Any = self.embed_tokens.weight
        self.dtype = weight.dtype
        self.device = weight.device
        self.image_token: int = self.config.image_token_id
        self.tokens_per_image = tokens_per_image(self.config)
        self.image_size: int = config.vision_config.image_size
        self.vocab_size: int = self.text_config.vocab_size
        self._cut = cut_tower(model)
        quantized = is_quantized(config)
        place = place_of(self.device, self.dtype, quantized=quantized)
        self.kernels = choose.choose(attention, place, self.device, self.text_config)
        self.kernels.prepare(model)
        if self.device.type == "cuda":
            set_attention(model.model.vision_tower, self.kernels.tower)
        self.lm_head = model.lm_head
        scale = torch.tensor(normalisation.rescale_factor, dtype=torch.float32)
        self._scale = scale.to(self.device)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(normalisation.image_mean, device=self.device).view(shape)
        self._std = torch.tensor(normalisation.image_std, device=self.device).view(shape)

    def allocate(self, *, num_slots: int, slot_tokens: int, max_tokens: int) -> SlotCache:
        """The K/V cache, in the layout that this attention reads."""
        cache = SlotCache(
            self.text_config,
            num_slots=num_slots,
            slot_tokens=slot_tokens,
            max_tokens=max_tokens,
            dtype=self.dtype,
            device=self.device,
            token_major=self.kernels.packed,
        )
        log.info(
            "%d slots of %d tokens: %.2f GB of K/V cache in %s on %s, attention %s",
            *(num_slots, slot_tokens, cache.num_bytes / 1e9, self.dtype, self.device),
            self.kernels.name,
        )
        return cache

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, 3, H, W]` -> the model's dtype, in the order of the reference processor."""
        scaled = pixels.to(self.device).float() * self._scale
        return ((scaled - self._mean) / self._std).to(self.dtype)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, 3, H, W]` -> image features `[N, T, C]`."""
        pixel_values = self.normalise(pixels)
        with self._no_tf32():
            if not self._cut:
                return torch.stack(list(self.model.get_image_features(pixel_values).pooler_output))
            hidden = self.model.model.vision_tower(pixel_values).last_hidden_state
        if self.config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:].contiguous()
        return self.model.model.multi_modal_projector(hidden)

    def _no_tf32(self) -> AbstractContextManager[None]:
        """float32 means float32: cuDNN would take the tower's convolution in TF32."""
        if self.dtype == torch.float32 and self.device.type == "cuda":
            exact: AbstractContextManager[None] = torch.backends.cudnn.flags(
                enabled=False, allow_tf32=False
            )
            return exact
        return nullcontext()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, Q]` -> embeddings `[B, Q, C]`; image tokens still hold their own."""
        return self.embed_tokens(ids)

    def forward(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        cache: SlotCache,
        rows: Pass,
    ) -> torch.Tensor:
        """Embeddings `[B, Q, C]`, positions `[B, Q]` -> hidden states `[B, Q, C]`; K/V go to `cache`."""
        cache.select(rows)
        return self.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            slot_rows=rows,
            slot_kernels=self.kernels,
            slot_tokens=cache.slot_tokens,
        ).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., C]` -> logits `[..., V]` in the model's dtype."""
        return self.lm_head(hidden)


def place_of(device: torch.device, dtype: torch.dtype, *, quantized: bool) -> Place:
    """What an attention is wanted for, with what is to be known of the card."""
    if device.type != "cuda":
        return Place(device=device.type, dtype=dtype, quantized=quantized)
    return Place(
        device="cuda",
        dtype=dtype,
        capability=torch.cuda.get_device_capability(device),
        card=torch.cuda.get_device_name(device),
        quantized=quantized,
    )


def take_over(model: LlavaForConditionalGeneration) -> None:
    """Make a model the engine's own; a second engine would cut its tower and pack its weights again.

    Raises:
        ValueError: it is another engine's already.
    """
    if getattr(model, "_is_an_engines", False):
        raise ValueError(
            "this model belongs to another engine, which has changed it: load it again"
        )
    model.eval().requires_grad_(False)
    setattr(model, "_is_an_engines", True)  # noqa: B010 transformers declares no such attribute


def own_configs(model: LlavaForConditionalGeneration) -> None:
    """Give the model configs of its own: another model may have been built from the same objects."""
    copies: dict[int, Any] = {}
    root: Any = copy.deepcopy(model.config)
    copies[id(model.config)] = root
    for name in ("text_config", "vision_config"):
        copies[id(getattr(model.config, name))] = getattr(root, name)
    module: Any
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            module.config = copies.setdefault(id(config), copy.deepcopy(config))


def set_attention(module: torch.nn.Module, name: str) -> None:
    """Have a sub-model, and every layer in it, call the attention of that name."""
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if config is not None:
            config._attn_implementation = name


def tokens_per_image(config: Any) -> int:
    """T: patches, and a class token where the tower has one (SigLIP's has none); the `default`
    strategy drops the first of them."""
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    class_token: bool = vision.model_type != "siglip_vision_model"
    dropped: bool = config.vision_feature_select_strategy == "default"
    return patches + class_token - dropped


def cut_tower(model: LlavaForConditionalGeneration) -> bool:
    """Drop the CLIP layers behind the one that is read; False for towers that must run whole."""
    config: Any = model.config
    layer = config.vision_feature_layer
    if not isinstance(layer, int) or config.vision_config.model_type != "clip_vision_model":
        return False
    tower: Any = model.model.vision_tower
    encoder = getattr(tower, "vision_model", tower).encoder
    # hidden_states[0] is the embedding's, hidden_states[k] comes out of layer k.
    depth = len(encoder.layers)
    encoder.layers = encoder.layers[: layer if layer >= 0 else depth + 1 + layer]
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


def end_tokens(model: LlavaForConditionalGeneration) -> frozenset[int]:
    """The ids that end an answer, from the generation config or else the language model's."""
    text_config: Any = model.config.text_config
    generation_config: Any = model.generation_config
    ids = generation_config.eos_token_id
    if ids is None:
        ids = text_config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)
