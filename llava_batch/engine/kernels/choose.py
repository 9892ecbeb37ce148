"""Which attention the engine takes: what is asked for, or the best that can be had here.

`ATTENTIONS` says of each what it needs and which kernels it has; `why_not` says, from what is known
without a device, whether it can be had; `choose` also tries it where it is to run.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from llava_batch.engine.cache import head_dim, kv_heads
from llava_batch.engine.kernels import cpu_build, cpu_layers, cuda, plain, self_test
from llava_batch.engine.kernels.contract import Kernels, Place

log = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What an attention needs, and its kernels.

    device, dtypes: the only ones that it is for; None: all. capability: the least of a card.
    reads_floats: its kernels read the weights themselves. missing: what this machine lacks for a dtype.
    """

    kernels: Callable[[], Kernels]
    device: str | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    capability: tuple[int, int] = (0, 0)
    reads_floats: bool = False
    missing: Callable[[torch.dtype], str | None] = lambda dtype: None


ATTENTIONS = {
    "native": Attention(
        kernels=lambda: cpu_layers.KERNELS,
        device="cpu",
        dtypes=tuple(cpu_build.NEEDS),
        reads_floats=True,
        missing=cpu_build.why_not,
    ),
    "torch": Attention(kernels=lambda: plain.KERNELS),
    "flash": Attention(
        kernels=lambda: cuda.kernels("flash"),
        device="cuda",
        dtypes=HALF,
        capability=(8, 0),
        missing=lambda dtype: cuda.why_not("flash"),
    ),
    "varlen": Attention(
        kernels=lambda: cuda.kernels("varlen"),
        device="cuda",
        dtypes=HALF,
        capability=(8, 0),
        missing=lambda dtype: cuda.why_not("varlen"),
    ),
    "sdpa": Attention(kernels=lambda: cuda.kernels("sdpa")),
}
NAMES = ("auto", *ATTENTIONS)


def why_not(name: str, place: Place) -> str | None:
    """Why an attention cannot be had at a place, or None; no device is touched and nothing is built."""
    wanted = ATTENTIONS[name]
    if wanted.device not in (None, place.device):
        return f"it needs a {wanted.device.upper()} device, this one is {place.device}"
    if wanted.dtypes is not None and place.dtype not in wanted.dtypes:
        return f"it computes in {_named(wanted.dtypes)}, not in {_named([place.dtype])}"
    if place.quantized and wanted.reads_floats:
        return "its kernels read float weights, these are quantized"
    if place.capability is not None and place.capability < wanted.capability:
        return f"{place.card} is older than compute capability " + "{}.{}".format(
            *wanted.capability
        )
    return wanted.missing(place.dtype)


def refuse(asked: str, place: Place) -> None:
    """Refuse one of NAMES that cannot be had at a place, before a device is touched.

    Raises:
        ValueError: with what is missing; or the name is unknown.
    """
    if asked not in NAMES:
        raise ValueError(f"attention is {asked!r}, must be one of {', '.join(NAMES)}")
    if asked != "auto":
        _refuse(asked, why_not(asked, place))


def choose(asked: str, place: Place, device: torch.device, config: Any) -> Kernels:
    """The kernels of one of NAMES; `auto` is the best that can be had here.

    config: the language model's; a kernel that must be tried is tried in its shape.

    Raises:
        ValueError: asked for and not there, with what is missing.
    """
    refuse(asked, place)
    if asked != "auto":
        _refuse(asked, _why_not_here(asked, place.dtype, device, config))
        return ATTENTIONS[asked].kernels()
    for name in ("native",) if place.device == "cpu" else cuda.NAMES:
        found = why_not(name, place) or _why_not_here(name, place.dtype, device, config)
        if found is None:
            return ATTENTIONS[name].kernels()
        log.info("attention %s cannot be had: %s", name, found)
    return plain.KERNELS


def _refuse(name: str, found: str | None) -> None:
    if found is not None:
        raise ValueError(f"attention {name!r} cannot be had: {found}; or give auto")


def _why_not_here(name: str, dtype: torch.dtype, device: torch.device, config: Any) -> str | None:
    """Why kernels do not work where they are to run, by building or trying them; None if they do."""
    if name == "native":
        return cpu_build.why_not_built(dtype)
    if name == "torch" or device.type == "cpu":
        return None
    return self_test.why_not(
        ATTENTIONS[name].kernels(),
        num_heads=config.num_attention_heads,
        kv_heads=kv_heads(config),
        head_dim=head_dim(config),
        window=getattr(config, "sliding_window", None),
        dtype=dtype,
        device=device,
    )


def _named(dtypes: Iterable[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
