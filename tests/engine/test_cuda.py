"""On a CUDA device the engine answers as on CPU: graphs, kernels, lag, memory."""

import copy
import gc
from typing import Any

import pytest
import torch
from test_demo_model import FOLDER, alone, parts, questions
from test_lag import mixture
from tiny_llava import SHAPES, by_key, image, prompt, reference, requests, tiny

from llava_batch.engine import Engine, Request
from llava_batch.engine.kernels import choose, cuda
from llava_batch.engine.model.llava import place_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CUDA = torch.device("cuda")


def wrapped(shape="multi-head", dtype=torch.float32, **options) -> Engine:
    model = copy.deepcopy(tiny(shape)).to(CUDA, dtype)
    return Engine(model, **{"slots": 5, "max_tokens": 160, **options})


def tokens(made: Engine, given: list[Request]) -> dict:
    return {key: c.token_ids for key, c in by_key(list(made.generate(given))).items()}


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_the_demo_models_float32_answers_are_cpus(slots):
    parts()
    given = questions(12)
    made = Engine.load(FOLDER, device="cuda", dtype="float32", slots=slots, max_tokens=256)
    assert made._lag
    batch = made._runner.batch
    assert batch is not None and batch._graphs is not None
    found = tokens(made, given)
    assert found == {(request.id, 0, 0): alone(request) for request in given}
    assert made.stats.memory_backoffs == 0
    assert not batch._graphs._gave_up


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", ["sdpa", "torch"])
def test_float32_answers_are_transformers_own(shape, attention):
    given = requests(9, turns=((2, 9, 8), (2, 5)))
    found = tokens(wrapped(shape, attention=attention), given)
    for request in given:
        for turn, answer in enumerate(reference(shape, request)):
            assert found[(request.id, turn, 0)] == answer


@pytest.mark.parametrize("lag", [False, True])
def test_every_kind_of_request_is_the_same_with_graphs_and_without(lag):
    options: dict[str, Any] = {"attention": "sdpa", "max_tokens": 200}
    options["decode"] = lambda ids: "x" * len(ids)
    given = mixture()
    with_graphs = tokens(wrapped(lag=lag, graphs=True, **options), given)
    without = tokens(wrapped(lag=lag, graphs=False, **options), given)
    on_cpu = Engine(copy.deepcopy(tiny()), slots=5, **{**options, "attention": "torch"})
    assert with_graphs == without == tokens(on_cpu, given)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", cuda.NAMES)
def test_each_kernel_agrees_with_the_plain_form(name, shape):
    missing = choose.why_not(name, place_of(CUDA, torch.bfloat16, quantized=False))
    if missing:
        pytest.skip(missing)
    given = requests(8, max_new_tokens=1)
    made = wrapped(shape, torch.bfloat16, attention=name)  # tried against the plain form at start
    plain = wrapped(shape, torch.bfloat16, attention="torch")
    assert made.llava.kernels.name == name
    scores = [
        {c.id: (c.token_ids, c.mean_logprob) for c in engine.generate(given)}
        for engine in (made, plain)
    ]
    same = [r.id for r in given if scores[0][r.id][0] == scores[1][r.id][0]]
    assert len(same) >= len(given) - 1, "bfloat16 rounds by shape, but not that much"
    for name in same:
        if scores[0][name][1] is not None:
            assert scores[0][name][1] == pytest.approx(scores[1][name][1], abs=0.1)


@pytest.mark.parametrize("name", cuda.NAMES)
def test_each_kernels_graphs_answer_as_its_plain_steps(name):
    missing = choose.why_not(name, place_of(CUDA, torch.bfloat16, quantized=False))
    if missing:
        pytest.skip(missing)
    given = requests(10, max_new_tokens=12)
    on, off = (
        tokens(wrapped(dtype=torch.bfloat16, attention=name, graphs=graphs), given)
        for graphs in (True, False)
    )
    assert on == off


def test_memory_does_not_grow():
    made = wrapped(attention="sdpa", slots=4)

    def source(first: int):
        for number in range(first, first + 60):
            yield Request(
                id=str(number),
                pixels=image(number),
                prompt_ids=prompt(number, number % 9),
                max_new_tokens=2 + number % 5,
            )

    assert sum(1 for _ in made.generate(source(0))) == 60
    gc.collect()
    before = torch.cuda.memory_allocated()
    for first in (100, 200, 300):
        assert sum(1 for _ in made.generate(source(first))) == 60
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


def test_nothing_in_a_decode_step_waits_for_the_device():
    made = wrapped(attention="sdpa", slots=4)
    given = requests(4, max_new_tokens=40, ignore_eos=True, temperature=0.8, top_p=0.9)
    for request in given:
        made.submit(request)
    for _ in range(3):  # prefill, and the capture of what is not captured yet
        made.step()
    decoding = list(made._scheduler.active.values())
    with torch.inference_mode():
        torch.cuda.set_sync_debug_mode("error")
        try:
            made._decode()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(decoding) == 4
    while made.has_work:
        made.step()


def test_without_memory_for_graphs_the_answers_are_the_same(monkeypatch):
    def without(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("llava_batch.engine.forward.cuda_graphs.Graphs._capture", without)
    made = wrapped(attention="sdpa", graphs=True)
    given = requests(6)
    assert tokens(made, given) == {(r.id, 0, 0): reference("multi-head", r)[0] for r in given}
    assert made.stats.memory_backoffs > 0
