"""The model that the engine drives, of whichever family: its language model, its settings, its `vision`.

Legend: C hidden size, B rows, Q their left-padded length, V vocabulary.
The model classes are transformers' own. The engine takes the model over: its attention is set to
the slots' and the vision layers behind the one that LLaVA reads are dropped.
"""

import copy
import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from llava_batch.engine.cache import SlotCache
from llava_batch.engine.kernels import choose, interface
from llava_batch.engine.kernels.contract import Place
from llava_batch.engine.model import families, supported
from llava_batch.engine.model.quantize import is_quantized
from llava_batch.engine.model.vision import Normalisation
from llava_batch.engine.passes import Pass, Rows

log = logging.getLogger(__name__)


class Llava:
    """A model of a LLaVA family, cut into the engine's verbs."""

    def __init__(
        self,
        model: PreTrainedModel,
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
        inner: Any = model.model
        self.embed_tokens: Any = model.get_input_embeddings()
        set_attention(inner.language_model, interface.NAME)
        weight: Any = self.embed_tokens.weight
        self.dtype = weight.dtype
        self.device = weight.device
        self.image_token: int = self.config.image_token_id
        self.vocab_size: int = self.text_config.vocab_size
        self.vision = families.vision_of(model, normalisation)
        quantized = is_quantized(config)
        place = place_of(self.device, self.dtype, quantized=quantized)
        self.kernels = choose.choose(attention, place, self.device, self.text_config)
        self.kernels.prepare(model)
        self.language_model = inner.language_model
        if self.device.type == "cuda":
            set_attention(inner.vision_tower, self.vision.attention(self.kernels.tower))
        self.lm_head: Any = model.lm_head

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
        """Embeddings `[B, Q, C]`, positions `[B, Q]` -> hidden states `[B, Q, C]`; K/V go to `cache`.

        Where `Rows` have places that are scored, the hidden states are theirs alone.
        """
        cache.select(rows)
        hidden: torch.Tensor = self.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            slot_rows=rows,
            slot_kernels=self.kernels,
            slot_tokens=cache.slot_tokens,
        ).last_hidden_state
        scored = rows.scored if isinstance(rows, Rows) else None
        return hidden if scored is None else hidden[:, hidden.shape[1] - scored :]

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


def take_over(model: PreTrainedModel) -> None:
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


def own_configs(model: PreTrainedModel) -> None:
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


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The ids that end an answer, from the generation config or else the language model's."""
    text_config: Any = model.config.text_config
    generation_config: Any = model.generation_config
    ids = generation_config.eos_token_id
    if ids is None:
        ids = text_config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)
