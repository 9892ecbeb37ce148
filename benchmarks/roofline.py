"""The ceiling: images/s by the FLOPs of an image and of its decode steps, the bytes of these, and what this machine does
of both."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import bench_model
import torch

from llava_batch.engine.kernels import cpu_build
from llava_batch.engine.kernels.cpu_linear import PackedLinear, PanelLinear

NUM_TEXT = 11
"""Words of a caption's prompt."""


def timed(clock: Callable[[], float], work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begin


def median(clock: Callable[[], float], work: Callable[[], Any], repeats: int = 9) -> float:
    """Seconds that `work` mostly takes, after a first time: an engine cannot choose the luckiest moments either."""
    work()
    return statistics.median(timed(clock, work) for _ in range(repeats))


def ceiling(options, dtype: torch.dtype, clock) -> dict[str, float]:
    """FLOP/s of a big product, bytes/s of a big read, and the images/s that they allow."""
    size = 8192 if options.device == "cuda" else 2048
    left = torch.randn(size, size, dtype=dtype, device=options.device)
    linear = torch.nn.Linear(size, size, bias=False, dtype=dtype, device=options.device)
    linear.requires_grad_(False)
    # No one of them is the best on every processor and in every dtype.
    ways = [linear]
    if options.device == "cpu":
        ways.append(PackedLinear(linear))
        if not cpu_build.why_not(dtype) and not cpu_build.why_not_built(dtype):
            ways.append(PanelLinear(linear))
    flops_per_s = 2 * size**3 / min(median(clock, partial(way, left)) for way in ways)
    big = torch.ones(2**27, dtype=torch.float32, device=options.device)
    bytes_per_s = big.numel() * 4 / median(clock, big.sum)
    prefill, step_bytes, row_bytes = costs(options.shape, dtype)
    steps = statistics.mean(lengths(options)) - 1
    seconds = prefill / flops_per_s
    # A step's weights are read once for all slots and multiplied by each row: whichever takes longer. Its keys and
    # values are read for one row each.
    weights = step_bytes / options.slots / bytes_per_s
    products = 2 * step_bytes / dtype.itemsize / flops_per_s
    seconds += steps * (max(weights, products) + row_bytes / bytes_per_s)
    return {
        "flops_per_s": flops_per_s,
        "bytes_per_s": bytes_per_s,
        "roofline_images_per_s": 1 / seconds,
    }


def lengths(options) -> list[int]:
    """Tokens of each caption's answer."""
    return (
        [options.tokens] * options.images if options.tokens else bench_model.lengths(options.images)
    )


def costs(shape: str, dtype: torch.dtype) -> tuple[float, float, float]:
    """FLOPs of an image's tower and prefill; bytes of a decode step's weights, and of a row's K/V."""
    config = bench_model.config(shape)
    prefix = bench_model.num_image_tokens(shape) + NUM_TEXT
    grid = bench_model.TILED[shape][1] if shape in bench_model.TILED else None
    tiles = 1 if grid is None else 1 + grid.rows * grid.columns
    text, vision = config.text_config, config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    tower_layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    tower = 2 * tokens * tower_layer + 4 * tokens**2 * vision.hidden_size
    layer = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    prefill = 2 * prefix * layer + 2 * prefix**2 * text.hidden_size
    projector = text.hidden_size * (vision.hidden_size + text.hidden_size) * 2 * (tokens - 1)
    tower, projector = tower * tiles, projector * tiles
    # The last layer of the tower is not needed, and of the language model's but keys and values, and one place.
    keys_values = 2 * text.hidden_size**2
    last = 2 * prefix * keys_values + 2 * (layer - keys_values) + 4 * prefix * text.hidden_size
    flops = (vision.num_hidden_layers - 1) * tower + projector
    flops += (text.num_hidden_layers - 1) * prefill + last
    weights = text.num_hidden_layers * layer + text.hidden_size * text.vocab_size
    row = 2 * text.num_hidden_layers * text.hidden_size * (prefix + 15)
    return flops, weights * dtype.itemsize, row * dtype.itemsize
