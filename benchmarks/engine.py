"""The engine against transformers' `generate`, by the same script on the same cores.

    python benchmarks/engine.py --quick
    python benchmarks/engine.py --dtype float32 --images 48 --repeats 3
    python benchmarks/engine.py --device cuda --shape llava-1.5-7b --slots 64 --tokens 64

The ceiling comes first: the time that the FLOPs of an image and the bytes of its decode steps take
at the speed measured here for one big product and one big read. Every figure is a median over
repeats after a warm-up, the rivals' turns alternate with the engine's, and the last line is JSON.
`--clock cpu --threads 1` counts the process's own seconds instead of the wall's, for a machine that
others use: compare its ratios, not its images/s. Text and image files
play no part.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import bench_model
import torch
from agreement import agreement, told
from transformers import PreTrainedModel

from llava_batch.engine import Engine, Request
from llava_batch.engine.kernels.cpu_layers import PackedLinear
from llava_batch.engine.model.vision import Normalisation

NUM_TEXT = 11
RIVALS = ("vllm", "openvino")
SCENES = 60
"""Held-out scenes of the demo model, of which a reduced dtype's answers are compared with float32's."""


def main() -> None:
    """Run, print a table, end with one line of JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    result: dict[str, Any] = vars(options) | {"torch": torch.__version__}
    result |= ceiling(options, dtype, clock)
    print(f"ceiling: {result['roofline_images_per_s']:.2f} images/s")
    result |= captions(options, dtype, clock)
    result |= questions(options, dtype, clock)
    result |= compare_rivals(options, result)
    result["roofline_fraction"] = result["images_per_s"] / result["roofline_images_per_s"]
    print(f"engine: {100 * result['roofline_fraction']:.0f} % of the ceiling")
    if options.dtype != "float32":
        result |= agreement(options.dtype, SCENES, device=options.device, slots=options.slots)
        print(told(result))
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    """The command line; `--quick` lowers what was not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="small", choices=bench_model.SHAPES)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--images", type=int)
    parser.add_argument("--tokens", type=int, help="every caption of so many (default: uneven)")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--batches", type=int, nargs="+", help="transformers' static batch sizes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    for name in RIVALS:
        parser.add_argument(f"--{name}-python", help=f"a Python that has {name}, to compare with")
    parser.add_argument("--quick", action="store_true", help="within five minutes on two cores")
    options = parser.parse_args()
    for name, quick, full, cuda in (
        ("images", 24, 48, 256),
        ("repeats", 1, 3, 1),
        ("batches", [8], [1, 4, 8, 16], [16, 32]),
    ):
        if getattr(options, name) is None:
            chosen = cuda if options.device == "cuda" else quick if options.quick else full
            setattr(options, name, chosen)
    return options


def compare_rivals(options: argparse.Namespace, ours: dict[str, Any]) -> dict[str, Any]:
    """The other engines whose Python was given, on the same work, beside our figures."""
    pythons = {name: getattr(options, f"{name}_python") for name in RIVALS}
    pythons = {name: path for name, path in pythons.items() if path}
    if not pythons:
        return {}
    import rivals  # needs more of transformers than a machine with a card may have

    found = rivals.compare(options, pythons)
    for name, rival in found.items():
        for rate in rivals.RATES.values():
            rival[f"ratio_{rate}"] = ours[rate] / rival[rate]
        captions, asked = (rival[f"ratio_{rate}"] for rate in rivals.RATES.values())
        print(
            f"  {name}: ours is {captions:.2f} times as fast in captions, {asked:.2f} in questions"
        )
    return found


def timed(clock: Callable[[], float], work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begin


def ceiling(options, dtype: torch.dtype, clock) -> dict[str, float]:
    """FLOP/s of a big product, bytes/s of a big read, and the images/s that they allow."""
    size = 8192 if options.device == "cuda" else 2048
    left = torch.randn(size, size, dtype=dtype, device=options.device)
    linear = torch.nn.Linear(size, size, bias=False, dtype=dtype, device=options.device)
    linear.requires_grad_(False)
    # In float32 torch's own product is far from the machine's best on some processors.
    ways = [linear] if options.device == "cuda" else [linear, PackedLinear(linear)]
    seconds = min(timed(clock, partial(way, left)) for way in ways for _ in range(5))
    flops_per_s = 2 * size**3 / seconds
    big = torch.ones(2**27, dtype=torch.float32, device=options.device)
    bytes_per_s = big.numel() * 4 / min(timed(clock, big.sum) for _ in range(5))
    prefill, step_bytes, row_bytes = costs(options.shape, dtype)
    steps = statistics.mean(lengths(options)) - 1
    seconds = prefill / flops_per_s
    seconds += steps * (step_bytes / options.slots + row_bytes) / bytes_per_s
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
    # The last layer of the tower is not needed.
    flops = (vision.num_hidden_layers - 1) * tower + text.num_hidden_layers * prefill + projector
    weights = text.num_hidden_layers * layer + text.hidden_size * text.vocab_size
    row = 2 * text.num_hidden_layers * text.hidden_size * (prefix + 15)
    return flops, weights * dtype.itemsize, row * dtype.itemsize


def captions_of(options, count: int, **how: Any) -> list[Request]:
    """Captions of the shape asked for."""
    return bench_model.captions(count, shape=options.shape, **how)


def tiles_of(request: Request) -> list[Any]:
    """A request's pixels, image by image."""
    pixels = request.pixels
    return [image.pixels for image in pixels] if isinstance(pixels, tuple) else [pixels]


def build(options, dtype: torch.dtype) -> PreTrainedModel:
    """The model asked for; the same weights every time."""
    return bench_model.build(options.shape, dtype=dtype, device=options.device)


def make_engine(options, dtype: torch.dtype, **more) -> Engine:
    """A warm engine with room for the longest request."""
    max_tokens = bench_model.num_image_tokens(options.shape) + 144
    made = Engine(
        build(options, dtype),
        slots=options.slots,
        slot_tokens=max_tokens,
        max_tokens=max_tokens,
        **more,
    )
    list(made.generate(captions_of(options, options.slots, first=9_000_000, num_tokens=3)))
    return made


def answer_all(made: Engine, requests: list[Request]) -> None:
    """Answer everything, and fail the benchmark if anything was not answered."""
    wrong = [c for c in made.generate(requests) if c.finish_reason == "error"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} requests ended in error, the first with {wrong[0].error}")


def captions(options, dtype: torch.dtype, clock) -> dict[str, float]:
    """Captions of uneven length: the engine and transformers' static batches in turn."""
    made, rival = make_engine(options, dtype), build(options, dtype)
    static(rival, captions_of(options, 2, num_tokens=3), 2, options.shape)
    ours: list[float] = []
    theirs: dict[int, list[float]] = {size: [] for size in options.batches}
    for repeat in range(options.repeats):
        first = repeat * options.images
        requests = captions_of(options, options.images, first=first, num_tokens=options.tokens)
        ours.append(timed(clock, partial(answer_all, made, requests)))
        for size, times in theirs.items():
            times.append(timed(clock, partial(static, rival, requests, size, options.shape)))
    images_per_s = options.images / statistics.median(ours)
    tokens_per_s = sum(lengths(options)) / statistics.median(ours)
    by_size = {size: options.images / statistics.median(t) for size, t in theirs.items()}
    best = max(by_size, key=by_size.__getitem__)
    print(f"captions: {images_per_s:.2f} images/s, {tokens_per_s:.0f} tokens/s, "
          f"occupancy {made.stats.occupancy:.2f}")  # fmt: skip
    memory = {"cache_bytes": made.cache.num_bytes}
    if options.device == "cuda":
        memory["peak_bytes"] = torch.cuda.max_memory_allocated()
    print("memory: " + ", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in memory.items()))
    print("start-up: " + ", ".join(f"{n} {t:.1f} s" for n, t in made.load_seconds.items()))
    for size, value in by_size.items():
        print(f"  transformers generate, static batches of {size}: {value:.2f} images/s")
    return {
        "images_per_s": images_per_s,
        "tokens_per_s": tokens_per_s,
        **memory,
        "start_up_s": made.load_seconds,
        "transformers_images_per_s": by_size[best],
        "transformers_batch": best,
        "ratio": images_per_s / by_size[best],
    }


@torch.inference_mode()
def static(model: PreTrainedModel, requests: list[Request], size: int, shape: str) -> None:
    """transformers' `generate` over batches in order, each as long as its longest answer."""
    plain = Normalisation()
    for begin in range(0, len(requests), size):
        batch = requests[begin : begin + size]
        pixels = torch.cat([torch.from_numpy(tiles) for r in batch for tiles in tiles_of(r)])
        scaled = pixels.to(model.device).float() * plain.rescale_factor
        mean = torch.tensor(plain.image_mean, device=model.device).view(1, 3, 1, 1)
        std = torch.tensor(plain.image_std, device=model.device).view(1, 3, 1, 1)
        values = ((scaled - mean) / std).to(model.dtype)
        sizes: dict[str, Any] = {}
        if shape in bench_model.SIZES:
            values = values.view(len(batch), -1, *values.shape[1:])
            sizes["image_sizes"] = torch.tensor([bench_model.SIZES[shape]] * len(batch))
        ids = torch.tensor([request.prompt_ids for request in batch], device=model.device)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=values,
            **sizes,
            max_new_tokens=max(request.max_new_tokens for request in batch),
            do_sample=False,
            eos_token_id=-1,
        )


def questions(options, dtype: torch.dtype, clock) -> dict[str, float]:
    """Four questions an image with and without reuse, and dialogues of three turns."""
    num_images = max(2, options.images // 3)
    times: dict[bool, list[float]] = {True: [], False: []}
    talks: list[float] = []
    for reuse, spent in times.items():  # one after the other: two do not fit every card
        made = make_engine(options, dtype, reuse=reuse)
        for repeat in range(options.repeats):
            first = 100_000 + repeat * num_images
            requests = bench_model.questions(num_images, first=first, shape=options.shape)
            spent.append(timed(clock, partial(answer_all, made, requests)))
            if reuse:
                dialogues = bench_model.dialogues(
                    num_images, first=first + 100_000, shape=options.shape
                )
                talks.append(timed(clock, partial(answer_all, made, dialogues)))
        del made
        if options.device == "cuda":
            torch.cuda.empty_cache()
    with_reuse, without = (4 * num_images / statistics.median(times[r]) for r in (True, False))
    turns = 3 * num_images / statistics.median(talks)
    print(f"four questions an image: {with_reuse:.2f} questions/s, {without:.2f} without reuse")
    print(f"dialogues of three turns: {turns:.2f} turns/s")
    return {
        "questions_per_s": with_reuse,
        "questions_per_s_without_reuse": without,
        "vqa_reuse_ratio": with_reuse / without,
        "dialogue_turns_per_s": turns,
    }


if __name__ == "__main__":
    main()
