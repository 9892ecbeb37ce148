"""The engine against transformers' `generate`, by the same script on the same cores.

    python benchmarks/engine.py --quick
    python benchmarks/engine.py --dtype float32 --images 48 --repeats 3
    python benchmarks/engine.py --images 96 --repeats 7 --vllm-python PYTHON --openvino-python PYTHON
    python benchmarks/engine.py --device cuda --shape llava-1.5-7b --slots 64 --tokens 64

The ceiling comes first: the time that the FLOPs of an image and those or the bytes of its decode steps take
at the speed measured here for one big product and one big read (roofline.py); on CPU it is measured again just before
and behind our turn of each repeat, since a machine that others use is not as fast in one minute as in the next. Every
figure is a median over repeats after a warm-up; in each repeat all contestants take turns, another one first each time,
and a ratio is the median of the repeats' own ratios, with its interval beside it. The last line is JSON.
`--clock cpu --threads 1` counts the process's own seconds instead of the wall's, for a machine that
others use: compare its ratios, not its images/s. Text and image files
play no part.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import bench_model
import torch
from agreement import agreement, told
from roofline import ceiling, lengths, timed
from transformers import PreTrainedModel

from llava_batch.engine import Engine, Request
from llava_batch.engine.model.vision import Normalisation

RIVALS = ("vllm", "openvino")
CEILING = "the ceiling of that minute"
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
    with rivals_of(options) as rivals:
        result |= captions(options, dtype, clock, rivals)
        result |= questions(options, dtype, clock, rivals)
        if rivals:
            result["agreement_with_ours"] = import_module("rivals").agreed(options, rivals)
    found = result["times_as_fast_in_captions"].get(CEILING)
    at_the_start = result["images_per_s"] / result["roofline_images_per_s"]
    result["roofline_fraction"] = found[0] if found else at_the_start
    print(f"engine: {100 * result['roofline_fraction']:.1f} % of the ceiling")
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
    parser.add_argument(
        "--batches", type=int, nargs="*", help="transformers' static batch sizes; none: without it"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    for name in RIVALS:
        parser.add_argument(f"--{name}-python", help=f"a Python that has {name}, to compare with")
    parser.add_argument("--quick", action="store_true", help="within five minutes on two cores")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="our captions drawn by it, too"
    )
    options = parser.parse_args()
    if options.clock == "cpu" and any(getattr(options, f"{name}_python") for name in RIVALS):
        parser.error("--clock cpu counts this process's seconds only: no rival beside it")
    if options.shape in bench_model.TILED and any(
        getattr(options, f"{name}_python") for name in RIVALS
    ):
        parser.error(f"--shape {options.shape}: the rivals' work is of one size of image")
    for name, quick, full, cuda in (
        ("images", 24, 48, 256),
        ("repeats", 1, 3, 1),
        ("batches", [8], [1, 4, 8, 16], [16, 32]),
    ):
        if getattr(options, name) is None:
            chosen = cuda if options.device == "cuda" else quick if options.quick else full
            setattr(options, name, chosen)
    return options


@contextmanager
def rivals_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The other engines whose Python was given, warm, by name."""
    pythons = {name: getattr(options, f"{name}_python") for name in RIVALS}
    pythons = {name: path for name, path in pythons.items() if path}
    if not pythons:
        yield {}
        return
    # It needs more of transformers than a machine with a card may have.
    with import_module("rivals").started(options, pythons) as found:
        yield found


def rounds(count: int, turns: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; another one begins each time."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    names = [*turns]
    for repeat in range(count):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(turns[name](repeat))
    return seconds


def against(what: str, ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """How many times as fast ours is: the median of the rounds, the least and the most; printed.

    Of seven rounds the least and the most enclose the median of all possible ones with 98 %.
    """
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    found = statistics.median(ratios), min(ratios), max(ratios)
    print("  {}: ours is {:.2f} times as fast ({:.2f} to {:.2f})".format(what, *found))
    return found


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


def caption_turns(options, made: Engine, plain: PreTrainedModel, clock) -> dict[str, Callable]:
    """How each contestant of this process answers a repeat's captions, in seconds."""

    def asked(repeat: int, first: int = 0) -> list[Request]:
        first += repeat * options.images
        return captions_of(options, options.images, first=first, num_tokens=options.tokens)

    def in_batches(size: int, repeat: int) -> float:
        requests = asked(repeat)
        return timed(clock, lambda: static(plain, requests, size, options.shape))

    def by_ours(repeat: int) -> float:
        requests = asked(repeat)
        return timed(clock, lambda: answer_all(made, requests))

    def drawn(repeat: int) -> float:
        # Images of its own: of the same ones the engine would still hold features, keys and values.
        requests = [
            replace(one, temperature=options.temperature, seed=repeat)
            for one in asked(repeat, first=5_000_000)
        ]
        return timed(clock, lambda: answer_all(made, requests))

    turns: dict[str, Callable] = {"ours": by_ours}
    if options.temperature:
        turns[f"ours, drawn at temperature {options.temperature:g}"] = drawn
    for size in options.batches:
        turns[f"transformers, static batches of {size}"] = partial(in_batches, size)
    return turns


def beside_the_ceiling(
    answer: Callable[[int], float], ceiling_s: Callable[[], float], found: list[float], repeat: int
) -> float:
    """Seconds of a round; those at the ceiling are measured just before and just behind it, and their mean is added to
    `found`: what the machine can do is another thing some minutes later."""
    before = ceiling_s()
    seconds = answer(repeat)
    found.append((before + ceiling_s()) / 2)
    return seconds


def at_the_ceiling(options, dtype: torch.dtype, clock) -> float:
    """Seconds that the captions would take."""
    return options.images / ceiling(options, dtype, clock)["roofline_images_per_s"]


def captions(options, dtype: torch.dtype, clock, rivals: dict[str, Any]) -> dict[str, Any]:
    """Captions of uneven length: the engine, transformers' static batches and the rivals in turn."""
    made, plain = make_engine(options, dtype), build(options, dtype)
    static(plain, captions_of(options, 2, num_tokens=3), 2, options.shape)
    turns = caption_turns(options, made, plain, clock)
    turns |= {name: partial(rival.seconds, "captions") for name, rival in rivals.items()}
    ceilings: list[float] = []
    if options.device == "cpu":  # a card that is full of slots has no room for its big tensors
        ceiling_s = partial(at_the_ceiling, options, dtype, clock)
        turns["ours"] = partial(beside_the_ceiling, turns["ours"], ceiling_s, ceilings)
    seconds = rounds(options.repeats, turns)
    seconds |= {CEILING: ceilings} if ceilings else {}
    ours = seconds.pop("ours")
    images_per_s = options.images / statistics.median(ours)
    tokens_per_s = sum(lengths(options)) / statistics.median(ours)
    print(f"captions: {images_per_s:.2f} images/s, {tokens_per_s:.0f} tokens/s, "
          f"occupancy {made.stats.occupancy:.2f}")  # fmt: skip
    rates = {name: options.images / statistics.median(taken) for name, taken in seconds.items()}
    for name, rate in rates.items():
        print(f"  {name}: {rate:.2f} images/s")
    ratios = {name: against(name, ours, taken) for name, taken in seconds.items()}
    memory = {"cache_bytes": made.cache.num_bytes}
    if options.device == "cuda":
        memory["peak_bytes"] = torch.cuda.max_memory_allocated()
    print("memory: " + ", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in memory.items()))
    print("start-up: " + ", ".join(f"{n} {t:.1f} s" for n, t in made.load_seconds.items()))
    return {
        "images_per_s": images_per_s,
        "tokens_per_s": tokens_per_s,
        **memory,
        "start_up_s": made.load_seconds,
        "captions_s": {"ours": ours, **seconds},
        "rivals_images_per_s": rates,
        "times_as_fast_in_captions": ratios,
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


def questions(options, dtype: torch.dtype, clock, rivals: dict[str, Any]) -> dict[str, Any]:
    """Four questions an image with and without reuse, and dialogues of three turns."""
    num_images = max(2, options.images // 3)
    made = make_engine(options, dtype)

    def asked(repeat: int) -> list[Request]:
        first = 100_000 + repeat * num_images
        return bench_model.questions(num_images, first=first, shape=options.shape)

    def talked(repeat: int) -> list[Request]:
        first = 200_000 + repeat * num_images
        return bench_model.dialogues(num_images, first=first, shape=options.shape)

    def by_ours(work: Callable[[int], list[Request]], repeat: int) -> float:
        requests = work(repeat)
        return timed(clock, lambda: answer_all(made, requests))

    turns: dict[str, Callable[[int], float]] = {"ours": partial(by_ours, asked)}
    turns |= {name: partial(rival.seconds, "questions") for name, rival in rivals.items()}
    seconds = rounds(options.repeats, turns)
    ours = seconds.pop("ours")
    talks = [by_ours(talked, repeat) for repeat in range(options.repeats)]
    del made  # two engines do not fit every card
    if options.device == "cuda":
        torch.cuda.empty_cache()
    made = make_engine(options, dtype, reuse=False)
    alone = [by_ours(asked, repeat) for repeat in range(options.repeats)]
    with_reuse, without = (4 * num_images / statistics.median(taken) for taken in (ours, alone))
    print(f"four questions an image: {with_reuse:.2f} questions/s, {without:.2f} without reuse")
    rates = {name: 4 * num_images / statistics.median(taken) for name, taken in seconds.items()}
    for name, rate in rates.items():
        print(f"  {name}: {rate:.2f} questions/s")
    ratios = {name: against(name, ours, taken) for name, taken in seconds.items()}
    turns_per_s = 3 * num_images / statistics.median(talks)
    print(f"dialogues of three turns: {turns_per_s:.2f} turns/s")
    return {
        "questions_per_s": with_reuse,
        "questions_per_s_without_reuse": without,
        "vqa_reuse_ratio": with_reuse / without,
        "dialogue_turns_per_s": turns_per_s,
        "questions_s": {"ours": ours, **seconds},
        "rivals_questions_per_s": rates,
        "times_as_fast_in_questions": ratios,
    }


if __name__ == "__main__":
    main()
