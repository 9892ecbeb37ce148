"""Trying a kernel on the device it is to run on, against the plain form in float32.

A few hundred random keys, two rows with a past and one without, then two decode steps, one with a row of
two slots: some milliseconds at start. It finds a kernel that is missing, crashes or masks another way than the engine
means; it does not measure speed, and says nothing of lengths beyond those it tries.
"""

import torch

from llava_batch.engine.kernels import plain
from llava_batch.engine.kernels.contract import Kernels
from llava_batch.engine.passes import Packed, Prefix, Rows
from llava_batch.engine.views import windows

LENGTH = 320
SLOTS = 4
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-3}


def why_not(
    kernels: Kernels,
    *,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """What is wrong with packed kernels' answers on this device, or None."""
    make = torch.Generator(device="cpu").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=make).to(device, dtype)

    slots = [random(SLOTS, LENGTH, kv_heads, head_dim).transpose(1, 2) for _ in range(2)]
    scaling = head_dim**-0.5
    try:
        for past in ((0, 0, 0), (70, 0, 130)):
            rows = Rows(slots=(2, 0, 1), past=past, new=(40, 17, 129))
            query = random(1, num_heads, sum(rows.new), head_dim)
            new = [random(1, kv_heads, sum(rows.new), head_dim) for _ in range(2)]
            if _prefill_error(kernels, rows, query, new, slots, scaling, window) > TOLERANCE[dtype]:
                return f"its prefill does not agree with the plain form on {device}"
        query = random(3, num_heads, 1, head_dim)
        for width in (1, 2):
            error = _decode_error(kernels, query, slots, scaling, window, width)
            if error > TOLERANCE[dtype]:
                return f"its decode does not agree with the plain form on {device}"
    except (RuntimeError, TypeError, ValueError, ImportError, OSError) as error:
        return f"it fails on {device}: {error}"
    return None


def _prefill_error(
    kernels: Kernels,
    rows: Rows,
    query: torch.Tensor,
    new: list[torch.Tensor],
    slots: list[torch.Tensor],
    scaling: float,
    window: int | None,
) -> float:
    packed = Packed.of(rows, query.device, LENGTH)
    stored = packed.store(slots[0], slots[1], new[0], new[1])
    found = kernels.prefill(query, *stored, packed, scaling, window)[0]
    padded = query.new_zeros(len(rows.slots), query.shape[1], rows.length, query.shape[3])
    for row, part in enumerate(query[0].split(rows.new, dim=1)):
        padded[row, :, -part.shape[1] :] = part
    whole = plain.prefill_attention(
        padded.float(), slots[0].float(), slots[1].float(), rows, scaling, window
    )
    expected = torch.cat([whole[row, -new:] for row, new in enumerate(rows.new)])
    return largest_difference(found, expected)


def _decode_error(
    kernels: Kernels,
    query: torch.Tensor,
    slots: list[torch.Tensor],
    scaling: float,
    window: int | None,
    width: int,
) -> float:
    """width: slots that the last of three rows has."""
    past, device = (110, 16, width * LENGTH - 61), query.device
    lengths = torch.tensor([number + 1 for number in past], dtype=torch.int32, device=device)
    wide = width > 1
    step = Prefix(
        places=lengths.long(),
        lengths=lengths,
        span=LENGTH,
        window=width * LENGTH if wide else 0,
        wide=((2, past[2] + 1),) if wide else (),
    )
    keys, values = (windows(part, 3, width * LENGTH) for part in slots)
    found = kernels.decode(query, keys, values, step, scaling, window)
    rows = Rows(slots=(0, 1, 2), past=past, new=(1, 1, 1), widths=(1, 1, width))
    expected = plain.decode_attention(
        query.float(), slots[0].float(), slots[1].float(), rows, scaling, window
    )
    return largest_difference(found, expected)


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of any two entries; infinite where one is not a number."""
    difference = (found.float() - expected.float()).abs().max()
    return float(difference.nan_to_num(nan=float("inf")))
