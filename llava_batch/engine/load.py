"""From a folder or hub id to an engine: device, dtype, quantization, slots, and what fits."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as remember
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers.utils import cached_file

from llava_batch.engine import quantize
from llava_batch.engine.cache import slot_bytes
from llava_batch.engine.llava import Llava, read_normalisation

if TYPE_CHECKING:
    from llava_batch.engine.engine import Engine

MAX_AUTO_TOKENS = 2048
MAX_AUTO_SLOTS = {"cpu": 32, "cuda": 256}
MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.85}
"""How much of the free memory "auto" gives to the cache; the rest is for activations and others."""
PREFILL_TOKENS = {"cpu": 1280, "cuda": 16384}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cache's size: slots, and tokens in each."""

    num_slots: int
    max_tokens: int


def load(
    engine: "type[Engine]",
    model: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    slots: int | str = "auto",
    attention: str = "auto",
    quantization: str | None = None,
    revision: str | None = None,
    **options: Any,
) -> "Engine":
    """Load `model` (a folder or a hub id) and make an engine of it.

    dtype "auto" is float32 on CPU and bfloat16 on CUDA. quantization is None, `nf4`, `fp4` or `int8`
    (see `quantize`) and leaves the fused kernels out. `options` are `Engine`'s own.

    Raises:
        ValueError: an option that is unknown, or that cannot be had here.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    how: dict[str, Any] = {}
    if quantization is not None:
        quantize.check(quantization, attention)
        how, attention = quantize.loading(quantization, kind, place), "torch"
    loaded = LlavaForConditionalGeneration.from_pretrained(
        model, revision=revision or "main", dtype=kind, **how
    )
    if quantization is None:  # else it is there already, and bitsandbytes' weights do not move
        loaded.to(torch.device(place))
    return engine(
        loaded,
        slots=slots,
        attention=attention,
        normalisation=read_normalisation(processor_files(model, revision)),
        decode=decoder(model, revision),
        **options,
    )


def choose_device(device: str) -> str:
    """ "auto" is CUDA where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype:
    """ "auto": float32 on CPU, bfloat16 elsewhere."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f"dtype is {dtype!r}, must be auto or one of {', '.join(known)}")
    return known[dtype]


def processor_files(model: str | Path, revision: str | None) -> list[Path]:
    """The processor's settings that are there, the newer form first."""
    names = ("processor_config.json", "preprocessor_config.json")
    if Path(model).is_dir():
        return [path for name in names if (path := Path(model) / name).is_file()]
    found = (
        cached_file(
            str(model),
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        for name in names
    )
    return [Path(path) for path in found if path]


def decoder(model: str | Path, revision: str | None) -> Callable[[list[int]], str]:
    """Token ids to text by the checkpoint's tokenizer, which is loaded when first needed."""

    @remember
    def tokenizer():
        return AutoTokenizer.from_pretrained(model, revision=revision)

    return lambda ids: tokenizer().decode(ids, skip_special_tokens=True)


def plan(llava: Llava, *, slots: int | str, max_tokens: int | str) -> Plan:
    """Slots and their length: as asked for, or by what the model and free memory allow."""
    limit = getattr(llava.text_config, "max_position_embeddings", None) or MAX_AUTO_TOKENS
    if isinstance(max_tokens, str):
        max_tokens = min(limit, MAX_AUTO_TOKENS)
    if max_tokens > limit:
        raise ValueError(f"max_tokens is {max_tokens}, the model has {limit} positions")
    if isinstance(slots, str):
        slots = auto_slots(llava, max_tokens)
    if slots < 1:
        raise ValueError(f"slots is {slots}, must be at least 1")
    return Plan(num_slots=slots, max_tokens=max_tokens)


def auto_slots(llava: Llava, max_tokens: int) -> int:
    """floor(share x free bytes / bytes of a slot), at most MAX_AUTO_SLOTS, at least one."""
    kind = llava.device.type
    one = slot_bytes(llava.text_config, max_tokens, llava.dtype)
    fit = int(free_bytes(llava.device) * MEMORY_SHARE[kind] / one)
    return max(1, min(MAX_AUTO_SLOTS[kind], fit))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device; on CPU what the system calls available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def prefill_tokens(llava: Llava, asked: int | str) -> int:
    """Tokens of one prefill group."""
    return PREFILL_TOKENS[llava.device.type] if isinstance(asked, str) else asked
