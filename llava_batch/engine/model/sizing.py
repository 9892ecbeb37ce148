"""How large the K/V cache is: slots, their length, prefill groups; as asked for, or by free memory.

For a card see `memory`'s formula, taken here once the weights are loaded.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_batch.engine.cache import slot_bytes
from llava_batch.engine.model import memory
from llava_batch.engine.model.llava import Llava
from llava_batch.engine.model.quantize import is_quantized
from llava_batch.engine.model.supported import num_positions, rope_type

MAX_AUTO_TOKENS = 2048
MAX_AUTO_SLOTS = {"cpu": 32, "cuda": 256}
CPU_MEMORY_SHARE = 0.5
"""How much of the host's free memory "auto" gives to the cache; for a card see `memory`."""
CPU_PREFILL_TOKENS = 1280


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cache's size: slots, and tokens in each; and tokens of one prefill group at most."""

    num_slots: int
    max_tokens: int
    prefill_tokens: int


def plan(
    llava: Llava, *, slots: int | str, max_tokens: int | str, prefill_tokens: int | str
) -> Plan:
    """Slots, their length, prefill groups: as asked for, or by what model and free memory allow."""
    max_tokens = choose_max_tokens(llava.text_config, max_tokens)
    if isinstance(prefill_tokens, str):
        prefill_tokens = auto_prefill_tokens(llava)
    if isinstance(slots, str):
        slots = auto_slots(llava, max_tokens, prefill_tokens)
    if slots < 1:
        raise ValueError(f"slots is {slots}, must be at least 1")
    return Plan(num_slots=slots, max_tokens=max_tokens, prefill_tokens=prefill_tokens)


def choose_max_tokens(text_config: Any, asked: int | str) -> int:
    """Tokens of a slot; "auto" is what the model has positions for, at most MAX_AUTO_TOKENS."""
    limit = num_positions(text_config) or MAX_AUTO_TOKENS
    if isinstance(asked, str):
        return min(limit, MAX_AUTO_TOKENS)
    if asked > limit:
        raise ValueError(
            f"max_tokens is {asked}, the model has {limit} positions "
            f"(its rotary embedding is {rope_type(text_config)})"
        )
    return asked


def auto_prefill_tokens(llava: Llava) -> int:
    """Tokens of a prefill group by the card's size; on CPU larger groups do not pay."""
    if llava.device.type == "cpu":
        return CPU_PREFILL_TOKENS
    return memory.prefill_tokens(llava.text_config, llava.dtype, card(llava.device))


def auto_slots(llava: Llava, max_tokens: int, prefill_tokens: int) -> int:
    """On a card by `memory.Needs.num_slots`, the weights being loaded; on CPU floor(share x free
    bytes / bytes of a slot). At most MAX_AUTO_SLOTS, at least one."""
    if llava.device.type == "cpu":
        one = slot_bytes(llava.text_config, max_tokens, llava.dtype)
        fit = int(free_host_bytes() * CPU_MEMORY_SHARE / one)
    else:
        fit = memory.needs(
            llava.config,
            dtype=llava.dtype,
            max_tokens=max_tokens,
            prefill_tokens=prefill_tokens,
            quantized=is_quantized(llava.config),
        ).num_slots(card(llava.device), 0)
    return max(1, min(MAX_AUTO_SLOTS[llava.device.type], fit))


def free_host_bytes() -> int:
    """The host's memory that can be had, caches that the kernel would drop included."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def card(device: str | torch.device) -> memory.Device:
    """A card's memory; what torch holds of it and does not use counts as free."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    name = torch.cuda.get_device_name(device)
    return memory.Device(name=name, total_bytes=total, free_bytes=free + unused)
