"""What fits on a device, in bytes: weights, K/V slots, and what a step takes beside them.

Plain arithmetic over a LLaVA config and a checkpoint's headers; no device is asked. The formula for a
card, with everything in bytes:

    slots = floor((free - weights - total / 20 - prefill - WORKSPACE) / (slot + row))

free: what the device has free; weights: those that are still to be loaded. A twentieth of the card
is left to the allocator's fragments and to others. prefill: the activations of one prefill group, a
tenth of the card at most (`prefill_tokens`), or of one prompt that fills a slot, which is not divided
(`longest_prefill`). WORKSPACE: cuBLAS' workspaces and what captured graphs keep. slot: the K/V of a
slot (of how many tokens: `sizing`); row: its logits, and its activations in a decode step. The
activations are counted from the layers' shapes, not measured on a card: a step that runs out of memory
is halved.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_batch.engine.cache import slot_bytes

GIB = 2**30
WORKSPACE_BYTES = GIB // 2
PREFILL_TOKENS = (1280, 16384)
"""Fewest and most tokens of a prefill group on a card."""

HIDDEN_COPIES, INNER_COPIES = 10, 3
"""Of a token's hidden state and of the feed-forward's inner state, alive at once in a layer: the
residual, its norm in float32 and back, q and k before and after rotation, v, the output; gate, up
and their product."""

PICK_BYTES = 64
"""Beside each logit of a row whose token is drawn: 48 in tensors that are alive at once (copies in float32,
their order, masses and sums in double), the rest for the workspace of a card's sort, which is not measured."""

CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 141, 192)
"""Sizes that cards are sold in, of which about 2 % and a CUDA context are not to be had."""
CONTEXT_BYTES = GIB // 2

KEPT = re.compile(r"vision_tower|vision_model|multi_modal_projector|embed_tokens|lm_head")
FLOATS = ("F64", "F32", "F16", "BF16")
OTHER_WIDTHS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
Tensor = tuple[str, str, tuple[int, ...]]
"""A tensor's name, dtype as safetensors writes it, and shape."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A card's memory, in bytes; `free_bytes` as it is now."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an engine takes of a card beside its weights, in bytes."""

    slot_bytes: int
    row_bytes: int
    prefill_bytes: int

    def num_slots(self, device: Device, weights_bytes: int) -> int:
        """How many slots there is room for beside `weights_bytes` that are still to be loaded (0
        once they are); below one the model does not fit. See the module for the formula."""
        room = device.free_bytes - weights_bytes - device.total_bytes // 20
        room -= self.prefill_bytes + WORKSPACE_BYTES
        return math.floor(room / (self.slot_bytes + self.row_bytes))


def needs(
    config: Any,
    *,
    dtype: torch.dtype,
    slot_tokens: int,
    prefill_tokens: int,
    quantized: bool = False,
) -> Needs:
    """For a LLaVA config, with activations and K/V in `dtype`."""
    text, width = config.text_config, dtype.itemsize
    one = activation_bytes(text, dtype)
    longest = longest_prefill(text, dtype, slot_tokens, prefill_tokens)
    prefill = max(longest * one, tower_bytes(config, dtype, prefill_tokens))
    if quantized:  # a product of many rows dequantizes its weight
        prefill += text.hidden_size * text.intermediate_size * width
    return Needs(
        slot_bytes=slot_bytes(text, slot_tokens, dtype),
        row_bytes=text.vocab_size * (width + PICK_BYTES) + one,
        prefill_bytes=prefill + longest * text.hidden_size * width,
    )


def longest_prefill(text: Any, dtype: torch.dtype, slot_tokens: int, prefill_tokens: int) -> int:
    """Tokens that a pass may take room for: a group's budget, or one row as long as a slot, however small
    the budget, with what is gathered of its past. A row of several slots may take more, and is tried."""
    return max(prefill_tokens, math.ceil(slot_tokens * (1 + gathered_share(text, dtype))))


def gathered_share(text: Any, dtype: torch.dtype) -> float:
    """A layer's keys and values of one token, in activations of one token."""
    one_layer: float = slot_bytes(text, 1, dtype) / text.num_hidden_layers
    return one_layer / activation_bytes(text, dtype)


def activation_bytes(text: Any, dtype: torch.dtype) -> int:
    """Activations of one token in one layer of the language model; layers follow one another."""
    elements = HIDDEN_COPIES * text.hidden_size + INNER_COPIES * text.intermediate_size
    return int(elements * dtype.itemsize)


def tower_bytes(config: Any, dtype: torch.dtype, prefill_tokens: int) -> int:
    """Activations of the vision tower for the images of a prefill group; pixels in float32 twice."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    images = max(1, prefill_tokens // patches)
    elements = HIDDEN_COPIES * vision.hidden_size + 2 * vision.intermediate_size
    pixels = 3 * vision.image_size**2 * 2 * 4
    return int(images * ((patches + 1) * elements * dtype.itemsize + pixels))


def prefill_tokens(text: Any, dtype: torch.dtype, device: Device) -> int:
    """Tokens of a prefill group whose activations take a tenth of the card, within PREFILL_TOKENS."""
    fewest, most = PREFILL_TOKENS
    fit = device.total_bytes // 10 // activation_bytes(text, dtype)
    return max(fewest, min(most, fit // 256 * 256))


def weights_bytes(
    tensors: Iterable[Tensor], dtype: torch.dtype, quantization: str | None = None
) -> int:
    """Bytes on the device of a checkpoint's tensors: floats in the engine's dtype, the decoder's
    linear layers as quantized, whole numbers (of a checkpoint that is quantized already) as stored."""
    total = 0
    for name, stored, shape in tensors:
        numel = math.prod(shape)
        linear = len(shape) == 2 and name.endswith(".weight") and not KEPT.search(name)
        if stored not in FLOATS:
            total += numel * OTHER_WIDTHS.get(stored, 1)
        elif linear and quantization is not None:
            total += quantized_bytes(shape, quantization)
        else:
            total += numel * dtype.itemsize
    return total


def quantized_bytes(shape: tuple[int, ...], quantization: str) -> int:
    """A weight `[rows, columns]` with its scales: one float32 for 64 in 4 bits, else one for a row
    (torchao's int8 has a zero point beside it)."""
    numel = math.prod(shape)
    if quantization in ("nf4", "fp4"):
        return -(-numel // 2) + 4 * -(-numel // 64)
    return numel + shape[0] * (5 if quantization == "int8wo" else 4)


def headers(folder: str | Path) -> Iterator[Tensor]:
    """The tensors that a folder's safetensors files say they hold; no weight is read.

    The format: eight bytes with the header's length, then the header in JSON.
    """
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, tensor["dtype"], tuple(tensor["shape"])


def why_not(
    config: Any, tensors: list[Tensor], device: Device, *, dtype: torch.dtype,
    quantization: str | None, slot_tokens: int,
) -> str | None:  # fmt: skip
    """Why a model cannot be had on this card, with what can; None if it can."""
    if not tensors:  # not in safetensors: nothing is known before it is loaded
        return None

    def on(card: Device, dtype: torch.dtype, quantization: str | None) -> tuple[int, int]:
        weights = weights_bytes(tensors, dtype, quantization)
        tokens = prefill_tokens(config.text_config, dtype, card)
        wants = needs(config, dtype=dtype, slot_tokens=slot_tokens, prefill_tokens=tokens,
                      quantized=quantization is not None)  # fmt: skip
        return wants.num_slots(card, weights), weights

    slots, weights = on(device, dtype, quantization)
    if slots >= 1:
        return None
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    others: dict[str, tuple[torch.dtype, str | None]]
    others = {f"--dtype {_short(half)}": (half, None)} if half != dtype else {}
    others |= {f"--quantization {name}": (half, name) for name in ("int8", "nf4")}
    fitting = [
        f"{flag} ({on(device, *how)[1] / GIB:.1f} GiB of weights)"
        for flag, how in others.items()
        if on(device, *how)[0] >= 1
    ]
    larger = next((c for c in CARDS_GB if on(_sold_as(c), dtype, quantization)[0] >= 1), None)
    if larger:
        fitting.append(f"a card of {larger} GB")
    called = ", ".join(filter(None, (_short(dtype), quantization)))
    return (
        f"{weights / GIB:.1f} GiB of weights ({called}) and what a step takes beside them do not fit "
        f"one card: {device.name} has {device.free_bytes / GIB:.1f} GiB free of "
        f"{device.total_bytes / GIB:.1f}; what fits: {' or '.join(fitting) or 'nothing'}"
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sold_as(gigabytes: int) -> Device:
    total = int(gigabytes * GIB * 0.98)
    name = f"{gigabytes} GB"
    return Device(name=name, total_bytes=total, free_bytes=total - CONTEXT_BYTES)
