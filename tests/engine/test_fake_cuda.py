"""On a card that is not there nothing waits for the device, mixes devices or moves in a captured step.

Every attention with every kind of request, every language model, tower, rotary embedding and dtype; and each
guard of `fake_card` is seen to find the fault that it is there for.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import fake_card
import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from fake_card import Card, Fault
from families import ROPES, TOWER, roped, text
from test_lag import even_only, letters
from tiny_llava import EOS, PATCH, SIZE, TOKENS, by_key, image, prompt, text_config, vision_config
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PixtralVisionConfig,
    SiglipVisionConfig,
    VipLlavaConfig,
)

from llava_batch.engine import Engine, Grid, Image, Request
from llava_batch.engine.forward.cuda_graphs import Graphs
from llava_batch.engine.kernels import cuda
from llava_batch.engine.model import supported
from llava_batch.engine.readback import Flight
from llava_batch.generate.json_schema import Walk

pytestmark = pytest.mark.skipif(fake_card.why_not() is not None, reason=str(fake_card.why_not()))

ATTENTIONS = ("flash", "varlen", "sdpa", "torch")
PIXELS, BASE = image(7), prompt(7, 24)
TURNS = ((2, 9, 8), (2, 17, 30))


class Matcher:
    """llguidance's, of a grammar that allows the first sixteen tokens."""

    def compute_bitmask(self) -> bytes:
        return bytes([255, 255] + [0] * 6)

    def consume_tokens(self, tokens: list[int]) -> None: ...

    def rollback(self, count: int) -> None: ...

    def is_error(self) -> bool:
        return False


def ask(name: str, **options: Any) -> Request:
    number = sum(map(ord, name)) % 50
    given = {"pixels": image(number), "prompt_ids": prompt(number, number % 7), **options}
    return Request(**{"id": name, "max_new_tokens": 4, **given})


def forks(count: int, **options: Any) -> list[Request]:
    """Requests for one image that begin alike."""
    return [
        ask(f"fork{n}", pixels=PIXELS, prompt_ids=[*BASE, *range(5, 6 + n)], **options)
        for n in range(count)
    ]


def kinds() -> dict[str, list[Request]]:
    """Every kind of request."""
    drawn = {"temperature": 1.1, "top_p": 0.9, "top_k": 20}
    return {
        "greedy": [ask("a"), ask("b", max_new_tokens=1), ask("c", ignore_eos=True)],
        "temperature": [ask("a", temperature=0.7), ask("b")],
        "top-p": [ask("a", temperature=1.0, top_p=0.5)],
        "top-k": [ask("a", temperature=1.0, top_k=5)],
        "penalty": [ask("a", repetition_penalty=1.3), ask("b", repetition_penalty=1.2, **drawn)],
        "least": [ask("a", min_new_tokens=3), ask("b")],
        "choices": [
            ask("a", pixels=PIXELS, prompt_ids=BASE, choices=((5, 9), (17,), (30, 31, 32))),
            ask("b", choices=((5,), (EOS,))),
        ],
        "JSON schema": [ask("a", logits_processor=Walk(Matcher(), [EOS])), ask("b")],
        "processor": [ask("a", logits_processor=even_only, turns=TURNS[:1], **drawn)],
        "samples": [ask("a", num_samples=4, **drawn)],
        "forks": forks(3),
        "dialogue": [ask("a", turns=TURNS), ask("b", turns=TURNS, repetition_penalty=1.3)],
        "stop": [ask("a", stop=("cc", "mm")), ask("b", stop=((5,), (7, 9)), turns=TURNS[:1])],
        "no image": [ask("a", pixels=None, prompt_ids=[1, 5, 6, 7])],
        "longer than a slot": [ask("a", prompt_ids=prompt(1, 90), turns=TURNS), ask("b"), ask("c")],
        "refused": [ask("a", max_new_tokens=900), ask("b")],
    }


def small(shape: str = "grouped-query") -> Any:
    """A language model's config of two layers."""
    config = text_config(shape)
    config.num_hidden_layers = 2
    return config


def answer(made: Engine, given: list[Request]) -> dict[tuple[str, int, int], Any]:
    """Every answer, each once; nothing is left."""
    found = by_key(list(made.generate(given)))
    expected = {
        (request.id, turn, sample)
        for request in given
        for turn in range(1 + len(request.turns))
        for sample in range(request.num_samples)
    }
    assert set(found) == expected
    made._scheduler.check()
    assert not made._picks.num_up
    return found


_made: dict[str, tuple[Card, Engine]] = {}


@pytest.fixture(params=ATTENTIONS)
def shared(request, monkeypatch) -> Iterator[tuple[Card, Engine]]:
    """One engine for each attention, on a card of its own."""
    name = request.param
    known, made = _made.get(name, (Card(), None))
    with known.at_work(monkeypatch):
        if made is None:
            made = known.engine(vision_config(), small(), attention=name, decode=letters)
            _made[name] = known, made
        yield known, made
        if made.has_work:  # the test failed within a step: the next one has a new engine
            del _made[name]


@pytest.fixture
def card(monkeypatch) -> Iterator[Card]:
    with Card().at_work(monkeypatch) as made:
        yield made


@pytest.mark.parametrize("kind", kinds())
def test_no_step_waits_for_the_device_whatever_is_asked(shared, kind) -> None:
    card, made = shared
    replays = sum(graph.num_replays for graph in card.graphs)
    found = answer(made, kinds()[kind])
    errors = {c.error_code for c in found.values() if c.finish_reason == "error"}
    assert errors == ({"prompt_too_long"} if kind == "refused" else set())
    kernels = made.llava.kernels
    beside = (
        kind == "longer than a slot" and kernels.reads_span
    )  # steps with such rows are not captured
    if kernels.packed and kind != "choices" and not beside:
        assert made._lag
        assert sum(graph.num_replays for graph in card.graphs) > replays, "steps were captured"
    assert made.stats.memory_backoffs == 0
    if made.llava.kernels.name == "flash":
        of_the_tower = set() if kind == "no image" else {"flash_attn_func"}
        assert card.seen >= {"flash_attn_varlen_func", "flash_attn_with_kvcache"} | of_the_tower


@pytest.mark.parametrize(
    "options",
    [{"lag": False}, {"graphs": False}, {"reuse": False}, {"slots": 1}, {"prefill_tokens": 50}],
    ids=str,
)
def test_no_step_waits_for_the_device_however_the_engine_is_made(card, options) -> None:
    made = card.engine(vision_config(), small(), attention="sdpa", **options)
    answer(made, [*forks(3, temperature=0.5), ask("a", turns=TURNS[:1])])


@pytest.mark.parametrize("attention", ["flash", "varlen", "sdpa"])
def test_every_norm_of_the_language_model_is_torchs_own_function(
    card, monkeypatch, attention
) -> None:
    """A card's torch has a kernel for it, which a fake one has not: here it is seen that it is called."""
    called: list[tuple[int, ...]] = []
    whole = functional.rms_norm

    def watched(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        called.append(tuple(x.shape))
        return whole(x, *rest)

    monkeypatch.setattr(functional, "rms_norm", watched)
    made = card.engine(vision_config(), small(), attention=attention, graphs=False)
    called.clear()
    answer(made, [ask("a", max_new_tokens=1)])
    layers: int = made.llava.text_config.num_hidden_layers
    assert len(called) == 2 * layers + 1, "one prefill"


def test_every_bucket_of_key_lengths_is_captured_before_the_work(card, monkeypatch) -> None:
    monkeypatch.setattr("llava_batch.engine.forward.decode_batch.SPAN", 48)
    made = card.engine(vision_config(), small(), attention="sdpa", slot_tokens=200)
    batch: Any = made._runner.batch
    captured = dict(batch._graphs._captured)
    assert set(captured) == {(size, span) for size in batch.sizes for span in batch.spans}
    assert all(captured.values())
    answer(made, [ask("a", prompt_ids=prompt(1, 30 * n), id=str(n)) for n in range(1, 4)])
    assert batch._graphs._captured == captured
    spans = {key[1] for key, one in captured.items() if one.graph.num_replays}
    assert len(spans) > 1, "rows of several lengths"


@pytest.mark.parametrize(
    ("attention", "dtype"),
    [(name, torch.float16) for name in ATTENTIONS]
    + [("sdpa", torch.float32), ("torch", torch.float32)],
    ids=str,
)
def test_no_step_waits_for_the_device_in_other_dtypes(card, attention, dtype) -> None:
    made = card.engine(vision_config(), small(), dtype, attention=attention)
    assert made.llava.dtype == dtype
    answer(made, [*forks(2, temperature=0.5), ask("a")])


def test_auto_takes_flash_with_lag_and_graphs_and_as_many_slots_as_fit(card) -> None:
    made = card.engine(vision_config(), small(), slots="auto", graphs=False)
    assert made.llava.kernels.name == "flash"
    assert made._lag
    answer(made, [ask("a")])


@pytest.mark.parametrize("attention", cuda.NAMES)
@pytest.mark.parametrize("kind", supported.TEXTS)
def test_no_language_model_on_the_list_waits_for_the_device(card, kind, attention) -> None:
    made = card.engine(vision_config(), text(kind), attention=attention, slots=1)
    answer(made, forks(2, max_new_tokens=2))


@pytest.mark.parametrize("attention", ["flash", "sdpa"])
@pytest.mark.parametrize("layer", [-2, [-2, -1]])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("tower", [CLIPVisionConfig, SiglipVisionConfig])
def test_no_tower_on_the_list_waits_for_the_device(card, tower, strategy, layer, attention) -> None:
    settings = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    made = card.engine(
        tower(**TOWER), small(), attention=attention, graphs=False, slots=2, **settings
    )
    count = TOKENS + (tower is CLIPVisionConfig) - (strategy == "default")
    answer(made, [ask("a", prompt_ids=prompt(3, 4, count), max_new_tokens=1)])


GRIDS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
FAMILIES: dict[str, dict[str, Any]] = {
    "next": {"family": LlavaNextConfig, "image_grid_pinpoints": GRIDS},
    "onevision": {
        "family": LlavaOnevisionConfig, "image_grid_pinpoints": GRIDS,
        "tower": SiglipVisionConfig, "vision_aspect_ratio": "anyres_max_1",
    },
    "vip": {"family": VipLlavaConfig, "vision_feature_layer": [-2, -3, 1]},
    "pixtral": {
        "tower": PixtralVisionConfig, "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
}  # fmt: skip


def images(name: str) -> tuple[tuple[Image, ...], int]:
    """Two images of a family that differ in their cost, and how many image tokens they take."""
    tile = partial(np.random.default_rng(0).integers, 0, 256, dtype=np.uint8)
    whole = Image(tile((1, 3, SIZE, SIZE)))
    if name == "vip":
        return (whole, Image(tile((1, 3, SIZE, SIZE)))), 2 * TOKENS
    if name == "pixtral":
        return (whole, Image(tile((1, 3, SIZE, PATCH)))), TOKENS + SIZE // PATCH
    kept = (6, 8) if name == "next" else (4, 5)
    tiled = Image(tile((5, 3, SIZE, SIZE)), Grid(2, 2, 1, 7, 0, 8, *kept))
    return (tiled, whole), 2 * TOKENS + kept[0] * (kept[1] + 1) + 1


@pytest.mark.parametrize("attention", ["flash", "varlen", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_waits_for_the_device(card, name, attention) -> None:
    settings = {"tower": CLIPVisionConfig, **FAMILIES[name]}
    tower = settings.pop("tower")(**TOWER)
    made = card.engine(tower, small(), attention=attention, slots=3, **settings)
    pixels, count = images(name)
    ids = prompt(3, 4, count)
    given = [
        ask("fork", pixels=pixels, prompt_ids=ids),
        ask("samples", pixels=pixels, prompt_ids=[*ids, 7], num_samples=2, temperature=1.0),
        ask("dialogue", pixels=pixels, prompt_ids=ids, turns=TURNS),
        ask("choices", pixels=pixels, prompt_ids=ids, choices=((5, 9), (17,))),
        ask("JSON", pixels=pixels, prompt_ids=ids, logits_processor=Walk(Matcher(), [EOS])),
    ]
    found = answer(made, given)
    assert {completion.error for completion in found.values()} == {None}
    assert made.stats.images_encoded == 2
    made._runner.encoder.max_patches = TOKENS  # of a budget of one tile
    first = made.llava.vision.num_tokens(pixels[0])
    answer(made, [ask("alone", pixels=pixels[:1], prompt_ids=prompt(9, 4, first))])


@pytest.mark.parametrize("kind", ROPES)
def test_of_the_rotary_embeddings_only_those_that_are_said_to_wait_do(card, kind) -> None:
    config = roped(kind, **ROPES[kind])
    made = card.engine(vision_config(), config, attention="sdpa", slots=1, max_tokens=100)
    given = [ask("a", max_new_tokens=2)]
    if supported.waits_for_the_device(config):
        assert made._runner.batch is not None
        assert made._runner.batch._graphs is None
        with pytest.raises(Fault, match="the host waits for the device"):
            answer(made, given)
    else:
        answer(made, given)


def test_a_row_that_is_not_finite_and_a_step_without_memory_make_nobody_wait(
    card, monkeypatch
) -> None:
    made = card.engine(vision_config(), small(), attention="flash")
    whole, landed = made._runner.decode, fake_card.Arriving.tolist
    steps = 0

    def tight(sequences: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(sequences)

    def lost(arriving: Any) -> list[Any]:
        scores = landed(arriving)
        return [float("nan")] * len(scores) if steps == 5 and scores[0] == -1.0 else scores

    monkeypatch.setattr(made._runner, "decode", tight)
    monkeypatch.setattr(fake_card.Arriving, "tolist", lost)
    given = [ask(str(n), ignore_eos=True, max_new_tokens=9) for n in range(4)]
    found = answer(made, given)
    assert {"non_finite"} < {completion.error_code for completion in found.values()}
    assert made.stats.memory_backoffs == 1


# Each guard is seen to find its fault: planted in a prefill, in a step, in a captured step.


def planted(made: Engine, fault: Any) -> None:
    """Have the engine do `fault` with its embeddings on the way into every pass."""
    whole = made.llava.embed

    def embed(ids: torch.Tensor) -> torch.Tensor:
        embeds = whole(ids)
        changed = fault(embeds)
        return embeds if changed is None else changed

    made.llava.embed = embed  # type: ignore[method-assign]


def masked(embeds: torch.Tensor) -> None:
    embeds[embeds > 0] = embeds[embeds > 0] * 2


WAITS = {
    "item": lambda embeds: embeds.sum().item(),
    "bool": lambda embeds: bool(embeds.sum() > 0),
    "int": lambda embeds: int(embeds.argmax()),
    "tolist": lambda embeds: embeds[0, 0].tolist(),
    "nonzero": lambda embeds: embeds.nonzero(),
    "a mask as index": masked,
    "a masked selection": lambda embeds: embeds.masked_select(embeds > 0),
    "unique": lambda embeds: embeds.unique(),
    "equal": lambda embeds: torch.equal(embeds, embeds.clone()),
    "synchronize": lambda embeds: torch.cuda.synchronize(),
}
SENT = {
    "a list": (lambda embeds: torch.tensor([1, 2], device="cuda"), "waits for a copy from cpu"),
    "a tuple": (
        lambda embeds: torch.as_tensor((1, 2), device=embeds.device),
        "waits for a copy from cpu",
    ),
    "a list as index": (lambda embeds: embeds[[0, 0]], "waits for a copy from cpu"),
    "not without waiting": (
        lambda embeds: torch.ones(3).pin_memory().to(embeds.device),
        "waits for a copy from cpu to cuda",
    ),
    "not pinned": (
        lambda embeds: torch.ones(3).to(embeds.device, non_blocking=True),
        "from cpu to cuda beside pinned memory",
    ),
    "cpu": (lambda embeds: embeds.cpu(), "copies to the host"),
    "into pinned memory": (
        lambda embeds: torch.empty(embeds.shape, pin_memory=True).copy_(embeds, non_blocking=True),
        "copies to the host",
    ),
}
MIXED = {
    "a sum": lambda embeds: embeds + torch.ones(embeds.shape),
    "an index": lambda embeds: embeds[torch.zeros(1, dtype=torch.long)],
    "a product": lambda embeds: embeds @ torch.ones(embeds.shape[-1], 2, dtype=embeds.dtype),
}


@pytest.mark.parametrize("name", WAITS)
@pytest.mark.parametrize("graphs", [False, True])
def test_a_wait_for_the_device_is_found(card, name, graphs) -> None:
    made = card.engine(vision_config(), small(), attention="sdpa", graphs=graphs, slots=1)
    planted(made, WAITS[name])
    with pytest.raises(Fault, match=r"waits for the device: .* at engine/test_fake_cuda.py:"):
        answer(made, [ask("a", max_new_tokens=1 if not graphs else 2)])


@pytest.mark.parametrize("name", SENT)
def test_a_copy_that_is_waited_for_is_found(card, name) -> None:
    made = card.engine(vision_config(), small(), attention="sdpa", graphs=False, slots=1)
    fault, said = SENT[name]
    planted(made, fault)
    with pytest.raises(Fault, match=f"{said}.* at engine/test_fake_cuda.py:"):
        answer(made, [ask("a")])


@pytest.mark.parametrize("name", MIXED)
def test_tensors_of_two_devices_are_found(card, name) -> None:
    made = card.engine(vision_config(), small(), attention="sdpa", graphs=False, slots=1)
    planted(made, MIXED[name])
    with pytest.raises(Fault, match=r"tensors of cpu and cuda meet in aten\..* at engine/"):
        answer(made, [ask("a")])


def test_results_that_are_sent_to_the_host_in_the_wrong_way_are_found(card, monkeypatch) -> None:
    made = card.engine(vision_config(), small(), attention="sdpa", graphs=False)
    sending = {
        "waits for a copy from cuda to cpu": lambda tensor: tensor.cpu(),
        "beside pinned memory": lambda t: torch.empty(t.shape, dtype=t.dtype).copy_(
            t, non_blocking=True
        ),
    }
    for said, send in sending.items():
        monkeypatch.setattr("llava_batch.engine.readback.to_host", card.to_host(send))
        with pytest.raises(Fault, match=said):
            answer(made, [ask("a")])


def test_results_that_are_read_before_they_are_there_are_found(card, monkeypatch) -> None:
    made = card.engine(vision_config(), small(), attention="sdpa", graphs=False)
    landing = Flight.land

    def hasty(flight: Flight) -> Any:
        object.__setattr__(flight, "ready", None)
        return landing(flight)

    monkeypatch.setattr(Flight, "land", hasty)
    with pytest.raises(Fault, match="read before they have arrived"):
        answer(made, [ask("a")])


def test_a_wait_that_costs_a_core_is_found(card, monkeypatch) -> None:
    made = card.engine(vision_config(), small(), attention="sdpa", graphs=False)
    events = torch.cuda.Event
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: events())
    with pytest.raises(Fault, match="costs a core"):
        answer(made, [ask("a")])


@pytest.mark.parametrize(
    "fault",
    [
        lambda embeds: torch.ones(3).pin_memory().to(embeds.device, non_blocking=True),
        lambda embeds: torch.empty(embeds.shape, pin_memory=True).copy_(embeds, non_blocking=True),
    ],
    ids=["to the device", "to the host"],
)
def test_a_copy_within_a_captured_step_is_found(card, monkeypatch, fault) -> None:
    whole = Graphs.__init__

    def faulty(graphs: Graphs, run: Any, *rest: Any) -> None:
        def running(key: Any) -> Any:
            found = run(key)
            fault(found[0])
            return found

        whole(graphs, running, *rest)

    monkeypatch.setattr(Graphs, "__init__", faulty)
    with pytest.raises(Fault, match="a captured step copies from"):
        card.engine(vision_config(), small(), attention="sdpa")


def one_step(made: Engine) -> None:
    """A step that is replayed, after another."""
    made.submit(ask("a", max_new_tokens=9, ignore_eos=True))
    made.step()
    made.step()


@pytest.mark.parametrize("name", ["_places", "_tokens"])
def test_a_buffer_of_a_captured_step_that_has_moved_is_found(card, name) -> None:
    made = card.engine(vision_config(), small(), attention="flash")
    one_step(made)
    batch: Any = made._runner.batch
    setattr(batch, name, getattr(batch, name).clone())
    with pytest.raises(Fault, match="a replay would not do what the step wants"):
        made.step()


def test_a_cache_that_has_moved_is_found(card) -> None:
    made = card.engine(vision_config(), small(), attention="flash")
    one_step(made)
    layer = made.cache.slot_layers[1]
    layer.keys = layer.keys.clone()
    with pytest.raises(Fault, match="a replay would not do what the step wants"):
        made.step()


def test_a_captured_step_that_depends_on_the_host_is_found(card) -> None:
    made = card.engine(vision_config(), small(), attention="flash")
    one_step(made)
    planted(made, lambda embeds: embeds * made.stats.steps)
    with pytest.raises(Fault, match="a replay would not do what the step wants"):
        made.step()


def test_a_captured_step_that_would_end_early_is_found(card) -> None:
    made = card.engine(vision_config(), small(), attention="flash")
    one_step(made)
    batch: Any = made._runner.batch
    whole = batch._graphs._run
    for graph in card.graphs:
        again = graph.again
        graph.again = lambda again=again: (again(), whole((1, batch.spans[-1])))
    with pytest.raises(Fault, match=r"a replay of \d+ operations for \d+"):
        made.step()


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        ("flash_attn_with_kvcache", {"cache_seqlens": lambda given: given.long()}),
        ("flash_attn_varlen_func", {"cu_seqlens_k": lambda given: given.long()}),
        ("flash_attn_varlen_func", {"cu_seqlens_q": lambda given: given[1:]}),
        ("flash_attn_varlen_func", {"max_seqlen_k": lambda given: torch.tensor(given)}),
    ],
    ids=str,
)
def test_an_argument_that_flash_attn_would_refuse_is_found(card, call, changes) -> None:
    import flash_attn

    made = card.engine(vision_config(), small(), attention="flash", graphs=False)
    whole = getattr(flash_attn, call)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return whole(*args, **{**kwargs, **{n: make(kwargs[n]) for n, make in changes.items()}})

    setattr(flash_attn, call, wrong)
    with pytest.raises(AssertionError):
        answer(made, [ask("a")])
