"""A card on paper: the engine's own scheduler, driven by what a card's steps would cost. No card is asked.

    python benchmarks/simulate.py [--card a100-80] [--images 1500] [--only by_memory]

Admission, waves, refill and grouping are the engine's (`Scheduler`, `groups`); a pass costs what its products
and its memory traffic take at a stated share of the card's published peaks, and no less than its kernels
take to launch. So it tells settings apart, and answers "how much would that bring"; its images/s are
arithmetic, never a measurement. Everything it prints is simulated.

Left out: padding and alignment of kernels, the sizes at which products are fast, clocks that fall, the host's
work between steps where it is hidden by `lag`, preparing and writing.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import bench_model
import numpy as np
import torch

from llava_batch.engine.forward.decode_batch import bucket, slot_buckets
from llava_batch.engine.forward.prefill_groups import groups
from llava_batch.engine.model import memory
from llava_batch.engine.request import Request
from llava_batch.engine.scheduler import Admission, Scheduler
from llava_batch.engine.sequence import Sequence, sequences

GIB = 2**30
PRODUCTS = 0.6
"""Share of a card's peak that large products in bfloat16 reach (assumed)."""
TRAFFIC = 0.8
"""Share of its bandwidth that reading weights and K/V reaches (assumed)."""
LAUNCH_S = 4e-6
"""The host's time for one kernel outside of a graph, GAP_S the card's for one inside (both assumed)."""
GAP_S = 1.2e-6
KERNELS = 44
"""Launches a layer: counted on the varlen path, 34 of them elementwise."""
PUBLISHED = {"images_per_s": 9.3, "prompt": 597, "answer": 104, "card": "a100-80"}
"""vLLM, one A100, March 2024: the only figure for this model and card that was found."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Published peaks: bfloat16 products in FLOP/s without sparsity, memory's bytes/s, and its size."""

    flops: float
    bandwidth: float
    gigabytes: int


CARDS = {  # NVIDIA's data sheets of the A100, H100 (SXM) and L4
    "a100-40": Card(flops=312e12, bandwidth=1.555e12, gigabytes=40),
    "a100-80": Card(flops=312e12, bandwidth=2.039e12, gigabytes=80),
    "h100-80": Card(flops=989e12, bandwidth=3.35e12, gigabytes=80),
    "l4-24": Card(flops=121e12, bandwidth=0.3e12, gigabytes=24),
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request: an image (by number), its tokens, the text's, and how long the answer will be."""

    image: int
    image_tokens: int
    text: int
    answer: int
    limit: int


@dataclass(kw_only=True)
class Costs:
    """What passes take on a card, in seconds, for a LLaVA config in bfloat16."""

    card: Card
    config: Any
    layer_params: int = field(init=False)
    tower_params: int = field(init=False)

    def __post_init__(self) -> None:
        text, vision = self.config.text_config, self.config.vision_config
        kv = text.num_key_value_heads / text.num_attention_heads
        attention = (2 + 2 * kv) * text.hidden_size**2
        self.layer_params = int(attention + 3 * text.hidden_size * text.intermediate_size)
        self.tower_params = (
            4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
        ) * vision.num_hidden_layers

    @property
    def decoder_params(self) -> int:
        """Of the layers and the last product, which every pass reads."""
        text = self.config.text_config
        return self.layer_params * text.num_hidden_layers + text.vocab_size * text.hidden_size

    @property
    def weights_s(self) -> float:
        """To read the decoder's weights once."""
        return 2 * self.decoder_params / (self.card.bandwidth * TRAFFIC)

    def kv_s(self, tokens: int) -> float:
        """To read so many tokens' K/V in all layers."""
        text = self.config.text_config
        head = text.hidden_size // text.num_attention_heads
        one = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 2
        return tokens * one / (self.card.bandwidth * TRAFFIC)

    def prefill_s(self, group: list[Sequence], images: int) -> float:
        """One prefill pass, with the images that it encodes."""
        text = self.config.text_config
        new = sum(s.num_pending for s in group)
        products = 2 * text.num_hidden_layers * self.layer_params * new
        attended = sum((len(s.ids) ** 2 - s.num_cached**2) / 2 for s in group)
        attention = 4 * text.num_hidden_layers * text.hidden_size * attended
        tower = images * 2 * self.tower_params * 577
        device = (products + attention + tower) / (self.card.flops * PRODUCTS)
        host = text.num_hidden_layers * KERNELS * LAUNCH_S
        return float(max(device, self.weights_s, host))

    def decode_s(self, rows: list[Sequence], size: int) -> float:
        """One captured decode step over `size` slots, idle ones computed with the others."""
        text = self.config.text_config
        products = 2 * self.decoder_params * size / (self.card.flops * PRODUCTS)
        gaps = text.num_hidden_layers * KERNELS * GAP_S
        return max(products, self.weights_s) + self.kv_s(sum(len(s.ids) for s in rows)) + gaps


class ByNeed(Scheduler):
    """The scheduler with memory counted in tokens: a request takes `takes(its need)` of them, wherever."""

    def __init__(self, tokens: int, takes: Callable[[int], int], *, reuse: bool) -> None:
        # Each has a slot of any length: what it takes is counted in tokens.
        rows = tokens // takes(1)
        super().__init__(rows, slot_tokens=tokens, reuse=reuse, packed=True)
        self.tokens, self.takes = tokens, takes

    def admit(self) -> list[Admission]:
        """As the scheduler does, one by one, while there is memory for the next."""
        admitted: list[Admission] = []
        free = self.tokens - sum(self.takes(s.max_tokens) for s in self.active.values())
        while self.waiting and (size := self.takes(self.waiting[0].max_tokens)) <= free:
            self.most = len(self.active) + 1
            admitted += super().admit()
            free -= size
        return admitted


@dataclass(kw_only=True)
class Run:
    """The engine's loop with costs in place of passes."""

    scheduler: Scheduler
    costs: Costs
    prefill_tokens: int
    together: int | None = None
    seconds: float = 0.0
    steps: int = 0
    rows: int = 0

    def answer(self, asks: list[Ask]) -> "Run":
        """Answer all, and keep the time; as in the engine, twice the slots wait at most."""
        self._length: dict[str, int] = {}
        self._encoded: set[int] = set()
        source = iter(enumerate(asks))
        waiting_most = self.scheduler.slots.num_slots
        while True:
            while len(self.scheduler.waiting) < waiting_most and (item := next(source, None)):
                self._submit(*item)
            if not (self.scheduler.waiting or self.scheduler.active):
                return self
            self._step()

    def _submit(self, number: int, ask: Ask) -> None:
        token = bench_model.IMAGE_TOKEN
        request = Request(
            id=str(number),
            prompt_ids=[1, *[token] * ask.image_tokens, *range(2, 1 + ask.text)],
            max_new_tokens=ask.limit,
        )
        self._length[request.id] = ask.answer
        image = (ask.image + 1).to_bytes(8, "little") * 2
        self.scheduler.add(sequences(request, [image], token, [ask.image_tokens]))

    def _step(self) -> None:
        if self._is_time():
            while self.scheduler.admit() or self._pending():
                self._prefill()
        rows = [s for s in self.scheduler.active.values() if s.can_decode]
        if rows:
            self.seconds += self.costs.decode_s(rows, self._size(rows))
            self.steps += 1
            self.rows += len(rows)
        for sequence in rows:
            self._picked(sequence)

    def _size(self, rows: list[Sequence]) -> int:
        """The engine's bucket of slots; with memory by the token, a row for each at work."""
        if isinstance(self.scheduler, ByNeed):
            return len(rows)
        return bucket(max(s.slot for s in rows) + 1, slot_buckets(self.scheduler.slots.num_slots))

    def _is_time(self) -> bool:
        if self.together is None:
            return self.scheduler.is_time()
        free = self.scheduler.most - len(self.scheduler.active)
        wanted = max(1, min(self.together, len(self.scheduler.waiting)))
        return not self.scheduler.active or free >= wanted

    def _pending(self) -> list[Sequence]:
        return [s for s in self.scheduler.active.values() if s.needs_prefill]

    def _prefill(self) -> None:
        for group in groups(self._pending(), self.prefill_tokens, padded=False):
            images = {s.images[0] for s in group if s.num_cached <= s.image_places[-1]}
            self.seconds += self.costs.prefill_s(group, len(images))
            for sequence in group:
                sequence.num_cached = len(sequence.ids)
                self.scheduler.cached(sequence)
                self._picked(sequence)

    def _picked(self, sequence: Sequence) -> None:
        sequence.num_cached = len(sequence.ids)
        sequence.append(0, 0.0)
        if sequence.num_answered == self._length[sequence.request.id]:
            self.scheduler.release(sequence)


def captions(images: int, *, median: int = 25, limit: int = 128, seed: int = 0) -> list[Ask]:
    """LLaVA-1.5's captions: 576 image tokens, 21 of text, log-normal answers."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(median), 0.5, images)), 1, limit).astype(int)
    return [
        Ask(image=i, image_tokens=576, text=21, answer=int(n), limit=limit)
        for i, n in enumerate(lengths)
    ]


def questions(images: int, *, each: int = 4, seed: int = 0) -> list[Ask]:
    """Several short answers an image, whose prefill is shared."""
    rng = np.random.default_rng(seed)
    return [
        Ask(image=i, image_tokens=576, text=int(rng.integers(20, 40)), answer=int(n), limit=16)
        for i in range(images)
        for n in rng.integers(1, 6, each)
    ]


def spread(images: int, *, most: int = 7000, seed: int = 0) -> list[Ask]:
    """Any resolution: image tokens spread tenfold, as LLaVA-NeXT's and OneVision's are."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(most / 10), np.log(most), images)).astype(int)
    asks = captions(images, median=64, limit=256, seed=seed)
    return [replace(a, image_tokens=int(n)) for a, n in zip(asks, sizes, strict=True)]


class Paper:
    """One card with one model on it: how much it holds, and how fast work would go."""

    def __init__(self, name: str, shape: str = "llava-1.5-7b") -> None:
        self.card, self.config = CARDS[name], bench_model.config(shape)
        self.costs = Costs(card=self.card, config=self.config)
        total = int(self.card.gigabytes * GIB * 0.98)
        self.device = memory.Device(
            name=name, total_bytes=total, free_bytes=total - memory.CONTEXT_BYTES
        )
        text = self.config.text_config
        self.prefill_tokens = memory.prefill_tokens(text, torch.bfloat16, self.device)

    def slots(self, tokens: int) -> int:
        """Slots of so many tokens that fit by the engine's formula, at most its 256; 0 if none."""
        wants = memory.needs(
            self.config,
            dtype=torch.bfloat16,
            slot_tokens=tokens,
            prefill_tokens=self.prefill_tokens,
        )
        tower = self.costs.tower_params
        weights = 2 * (self.costs.decoder_params + tower + 32000 * 4096)
        return min(256, wants.num_slots(self.device, weights))

    def run(
        self, asks: list[Ask], *, slots: int | None = None, prefill_tokens: int | None = None,
        together: int | None = None, reuse: bool = False, scheduler: Scheduler | None = None,
    ) -> Run:  # fmt: skip
        """Answer `asks` with what is given, and the engine's own defaults for the rest."""
        need = max(a.image_tokens + a.text + a.limit for a in asks)
        if scheduler is None:
            scheduler = Scheduler(
                slots or self.slots(need), slot_tokens=need, reuse=reuse, packed=True
            )
        return Run(
            scheduler=scheduler,
            costs=self.costs,
            prefill_tokens=prefill_tokens or self.prefill_tokens,
            together=together,
        ).answer(asks)


def rate(run: Run, images: int) -> float:
    """Images a second, by simulated time."""
    return round(images / run.seconds, 2)


def by_slots(paper: Paper, images: int) -> dict[str, float]:
    """Against slots, for captions; those that fit are marked by the engine's formula elsewhere."""
    asks = captions(images)
    return {
        str(n): rate(paper.run(asks, slots=n), images) for n in (8, 16, 32, 64, 96, 128, 192, 256)
    }


def by_answer(paper: Paper, images: int) -> dict[str, float]:
    """Against the median answer's length."""
    return {
        str(n): rate(paper.run(captions(images, median=n, limit=8 * n)), images)
        for n in (8, 25, 64, 104, 192)
    }


def by_together(paper: Paper, images: int) -> dict[str, dict[str, float]]:
    """Against how many slots run empty before others are admitted; `default` is the engine's."""
    found: dict[str, dict[str, float]] = {}
    for name, asks, reuse in (
        ("captions", captions(images), False),
        ("questions", questions(images // 4), True),
    ):
        count = len({a.image for a in asks})
        ways: Iterable[tuple[str, int | None]] = [("default", None)]
        ways = [*ways, *((str(n), n) for n in (1, 2, 4, 8, 16, 32, 64))]
        found[name] = {
            label: rate(paper.run(asks, slots=128, together=n, reuse=reuse), count)
            for label, n in ways
        }
    return found


def by_prefill(paper: Paper, images: int) -> dict[str, float]:
    """Against the tokens of one prefill group, `default` being what the engine takes on this card."""
    sizes = [640, 1280, 2560, 5120, 10240, 16384]
    found = {"default": rate(paper.run(captions(images), slots=128), images)}
    for size in sizes:
        run = paper.run(captions(images), slots=128, prefill_tokens=size)
        found[str(size)] = rate(run, images)
    return found


def by_memory(paper: Paper, images: int) -> dict[str, Any]:
    """Requests spread tenfold: slots of one length, or pages, placed anywhere, with the same memory.

    A request that is longer than a slot has several side by side, as the engine's own scheduler gives them.
    """
    asks = spread(images)
    needs = [a.image_tokens + a.text + a.limit for a in asks]
    largest, median = max(needs), int(np.median(needs))
    slots = paper.slots(largest)
    if slots < 1:
        return {"slots_fit": 0}
    tokens = slots * largest
    lengths = {
        "slots of the largest need": largest,
        "slots of the median need": median,
        "slots of a quarter of it": median // 4,
    }
    ways: dict[str, Scheduler] = {
        name: Scheduler(tokens // length, slot_tokens=length, reuse=False, packed=True)
        for name, length in lengths.items()
    }
    ways["pages of 256"] = ByNeed(tokens, lambda need: -(-need // 256) * 256, reuse=False)
    found: dict[str, Any] = {"tokens": tokens, "largest": largest, "median": median}
    for name, scheduler in ways.items():
        run = paper.run(asks, scheduler=scheduler)
        found[name] = {"images_per_s": rate(run, images), "rows": round(run.rows / run.steps, 1)}
    return found


def published(paper: Paper, images: int) -> dict[str, float]:
    """The published run's lengths, with as many slots as fit."""
    ask = Ask(image=0, image_tokens=576, text=21, answer=104, limit=128)
    asks = [replace(ask, image=i) for i in range(images)]
    return {"simulated": rate(paper.run(asks), images), "published": PUBLISHED["images_per_s"]}  # type: ignore[dict-item]


MEASURES = (by_slots, by_answer, by_together, by_prefill, by_memory)


def main() -> None:
    """Print what was asked for as tables, and all of it as a last line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--card", choices=CARDS, action="append")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--only", choices=[one.__name__ for one in MEASURES], action="append")
    options = parser.parse_args()
    everything: dict[str, Any] = {"simulated": True, "images": options.images}
    for name in options.card or CARDS:
        paper = Paper(name)
        figures: dict[str, Any] = {"slots_of_768": paper.slots(768)}
        if paper.slots(768):
            chosen = [m for m in MEASURES if m.__name__ in (options.only or [m.__name__])]
            for measure in chosen:
                figures[measure.__name__] = measure(paper, options.images)
            if name == PUBLISHED["card"] and not options.only:
                figures["published"] = published(paper, options.images)
        print(f"\n{name}, LLaVA-1.5-7B in bfloat16, images/s, simulated")
        for label, figure in figures.items():
            print(f"  {label}: {figure}", flush=True)
        everything[name] = figures
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
