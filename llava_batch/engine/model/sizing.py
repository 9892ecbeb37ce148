"""How large the K/V cache is: slots, their length, prefill groups; as asked for, or by free memory.

For a card see `memory`'s formula, taken here once the weights are loaded.
"""

from dataclasses import dataclass
from typing import Any

import torch

from llava_batch.engine.cache import slot_bytes
from llava_batch.engine.model import memory
from llava_batch.engine.model.host_memory import free_host_bytes
from llava_batch.engine.model.llava import Llava
from llava_batch.engine.model.quantize import is_quantized
from llava_batch.engine.model.supported import num_positions, rope_type
from llava_batch.engine.model.vision import features_per_image

ROOM_TOKENS = 192
"""Of a slot beside an image, where a job does not say what it needs: for a prompt and its answer."""
MAX_AUTO_SLOTS = {"cpu": 32, "cuda": 256}
CPU_MEMORY_SHARE = 0.5
"""How much of the host's free memory "auto" gives to the cache; for a card see `memory`."""
CPU_PREFILL_TOKENS = 1280


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cache's size: slots, tokens in each, rows at work at once, which may be fewer; tokens of one
    request at most; and of one prefill group."""

    num_slots: int
    slot_tokens: int
    num_rows: int
    max_tokens: int
    prefill_tokens: int


def plan(
    llava: Llava,
    *,
    slots: int | str,
    slot_tokens: int | str,
    max_tokens: int | str,
    prefill_tokens: int | str,
) -> Plan:
    """As asked for, or by what model and free memory allow. Where memory has room for it there are so many
    slots that a request of `max_tokens` finds place, whatever the rows."""
    max_tokens = choose_max_tokens(llava.text_config, max_tokens)
    slot_tokens = choose_slot_tokens(llava.config, slot_tokens, max_tokens)
    if isinstance(prefill_tokens, str):
        prefill_tokens = auto_prefill_tokens(llava)
    fit = fitting_slots(llava, slot_tokens, prefill_tokens)
    if isinstance(slots, str):
        slots = max(1, min(MAX_AUTO_SLOTS[llava.device.type], fit))
    if slots < 1:
        raise ValueError(f"slots is {slots}, must be at least 1")
    longest = -(-max_tokens // slot_tokens)
    return Plan(
        num_slots=max(slots, min(longest, fit)),
        slot_tokens=slot_tokens,
        num_rows=slots,
        max_tokens=max_tokens,
        prefill_tokens=prefill_tokens,
    )


def choose_max_tokens(text_config: Any, asked: int | str) -> int:
    """Tokens of one request at most; "auto" is what the model has positions for.

    Raises:
        ValueError: more than these, or "auto" where the config does not say how many they are.
    """
    limit = num_positions(text_config)
    if isinstance(asked, str):
        if limit is None:
            raise ValueError(
                "max_tokens is 'auto', and the model's config has no max_position_embeddings; give a number"
            )
        return limit
    if limit is not None and asked > limit:
        raise ValueError(
            f"max_tokens is {asked}, the model has {limit} positions "
            f"(its rotary embedding is {rope_type(text_config)})"
        )
    return asked


def choose_slot_tokens(config: Any, asked: int | str, max_tokens: int) -> int:
    """Tokens of a slot: as asked for, or for one image, a prompt and its answer; at most `max_tokens`."""
    if isinstance(asked, str):
        asked = features_per_image(config) + ROOM_TOKENS
    if asked < 1:
        raise ValueError(f"slot_tokens is {asked}, must be at least 1")
    return min(asked, max_tokens)


def auto_prefill_tokens(llava: Llava) -> int:
    """Tokens of a prefill group by the card's size; on CPU larger groups do not pay."""
    if llava.device.type == "cpu":
        return CPU_PREFILL_TOKENS
    return memory.prefill_tokens(llava.text_config, llava.dtype, card(llava.device))


def fitting_slots(llava: Llava, slot_tokens: int, prefill_tokens: int) -> int:
    """Slots that there is memory for: on a card by `memory.Needs.num_slots`, the weights being loaded; on
    CPU floor(share x free bytes / bytes of a slot)."""
    if llava.device.type == "cpu":
        one = slot_bytes(llava.text_config, slot_tokens, llava.dtype)
        return int(free_host_bytes() * CPU_MEMORY_SHARE / one)
    return memory.needs(
        llava.config,
        dtype=llava.dtype,
        slot_tokens=slot_tokens,
        prefill_tokens=prefill_tokens,
        quantized=is_quantized(llava.config),
    ).num_slots(card(llava.device), 0)


def card(device: str | torch.device) -> memory.Device:
    """A card's memory; what torch holds of it and does not use counts as free."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    name = torch.cuda.get_device_name(device)
    return memory.Device(name=name, total_bytes=total, free_bytes=free + unused)
