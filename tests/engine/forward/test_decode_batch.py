"""Decode over a prefix of the slots: buckets, buffers, idle slots, graphs and their fall-backs."""

import logging
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llava import SHAPES, by_key, engine, image, prompt, reference, requests

from llava_batch.engine import Completion, Request
from llava_batch.engine.forward import cuda_graphs as graphs
from llava_batch.engine.forward import decode_batch
from llava_batch.engine.forward.cuda_graphs import Captured
from llava_batch.engine.forward.decode_batch import DecodeBatch, bucket, slot_buckets, span_buckets
from llava_batch.engine.forward.runner import device_option
from llava_batch.engine.kernels import cuda
from llava_batch.engine.stats import Stats

PACKED: dict[str, Any] = {"attention": "sdpa", "lag": True}


def test_the_buckets_of_slots_are_few_and_end_at_the_number_of_slots():
    assert slot_buckets(1) == [1]
    assert slot_buckets(3) == [1, 2, 3]
    assert slot_buckets(24) == [1, 2, 4, 8, 16, 24]
    assert slot_buckets(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert slot_buckets(200) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 200]
    assert slot_buckets(256)[-3:] == [128, 192, 256]
    assert slot_buckets(24, few=True) == [1, 2, 4, 8, 16, 24]
    assert slot_buckets(256, few=True) == [1, 2, 4, 8, 16, 32, 64, 128, 256]


@given(st.integers(1, 600), st.booleans(), st.data())
def test_a_bucket_holds_what_it_must_and_at_most_twice_that(num_slots, few, data):
    needed = data.draw(st.integers(1, num_slots))
    sizes = slot_buckets(num_slots, few=few)
    assert sizes == sorted(set(sizes))
    assert (
        needed <= bucket(needed, sizes) <= max(num_slots if needed > sizes[-1] else 0, 2 * needed)
    )


def test_key_lengths_are_bucketed_only_where_a_kernel_reads_them_all():
    assert span_buckets(2048, bucketed=False) == [2048]
    assert span_buckets(700, bucketed=True) == [256, 512, 700]
    assert span_buckets(512, bucketed=True) == [256, 512]
    assert span_buckets(2048, bucketed=True) == [256, 512, 1024, 2048]
    assert span_buckets(100, bucketed=True) == [100]
    assert bucket(256, span_buckets(700, bucketed=True)) == 256
    assert bucket(257, span_buckets(700, bucketed=True)) == 512


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_several_key_lengths_answer_as_alone(monkeypatch, shape):
    monkeypatch.setattr(decode_batch, "SPAN", 16)
    made = engine(shape, slots=5, max_tokens=90, **PACKED)
    spans = watch(made, lambda key: key[1])
    given = requests(7, lengths=(3, 30, 5, 17, 50), max_new_tokens=14, ignore_eos=True)
    found = by_key(list(made.generate(given)))
    for request in given:
        assert found[(request.id, 0, 0)].token_ids == reference(shape, request)[0]
    assert len(set(spans)) > 1, "the test must meet several buckets"


def watch(made, what):
    """The keys of every decode step, as they are run."""
    seen, whole = [], made._runner.batch._run

    def run(key):
        seen.append(what(key))
        return whole(key)

    made._runner.batch._run = run
    return seen


def test_a_step_works_on_the_slots_up_to_the_highest_that_is_taken():
    made = engine(slots=16, **PACKED)
    sizes = watch(made, lambda key: key[0])
    list(made.generate(requests(1, max_new_tokens=5, ignore_eos=True)))
    assert set(sizes) == {1}
    sizes.clear()
    list(made.generate(requests(3, max_new_tokens=5, ignore_eos=True)))
    assert set(sizes) == {4}
    given = [
        Request(
            id=str(n), prompt_ids=[1, 5 + n, 9], max_new_tokens=2 + 5 * (n == 1), ignore_eos=True
        )
        for n in range(8)
    ]
    sizes.clear()
    list(made.generate(given))
    assert sizes[0] == 8
    assert sizes[-1] == 2, "slots that are free again above the last taken are left out"


def test_what_a_free_slot_holds_is_not_touched_by_the_steps_of_others():
    made = engine(slots=4, **PACKED)
    ids = prompt(0, 24)
    first = [
        Request(id="donor", pixels=image(0), prompt_ids=ids, max_new_tokens=1),
        Request(
            id="long", pixels=image(1), prompt_ids=prompt(1, 9), max_new_tokens=30, ignore_eos=True
        ),
    ]
    for request in first:
        made.submit(request)
    made.step()
    (donor,) = [s for s in range(4) if len(made._scheduler._held[s]) == len(ids)]
    before = [layer.keys[donor, :, :-1].clone() for layer in made.cache.slot_layers]
    for _ in range(10):
        made.step()
    assert made._scheduler.slots.is_free(donor)
    assert donor < max(made._scheduler.active), "the slot must lie within the steps' prefix"
    after = [layer.keys[donor, :, :-1] for layer in made.cache.slot_layers]
    assert all(map(torch.equal, before, after))
    again = Request(id="again", pixels=image(0), prompt_ids=[*ids, 7], max_new_tokens=8)
    made.submit(again)
    found: dict[tuple[str, int, int], Completion] = {}
    while made.has_work:
        found |= by_key(made.step())
    assert found[("again", 0, 0)].token_ids == reference("multi-head", again)[0]
    assert made.stats.tokens_reused == len(ids)


def test_a_request_that_fills_its_slot_to_the_brim_answers_as_alone():
    given = requests(4, max_new_tokens=12, ignore_eos=True)
    brim = max(len(request.prompt_ids) for request in given) + 12
    found = by_key(list(engine(slots=3, max_tokens=brim, **PACKED).generate(given)))
    for request in given:
        assert found[(request.id, 0, 0)].token_ids == reference("multi-head", request)[0]


def shifted(monkeypatch, row, by):
    whole = DecodeBatch._run

    def run(batch, key):
        batch._places[row, : key[0]] = (batch._places[row, : key[0]] + by).clamp(min=1)
        return whole(batch, key)

    monkeypatch.setattr(DecodeBatch, "_run", run)


@pytest.mark.parametrize("row", [1, 2])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_place_off_by_one_is_noticed(monkeypatch, row, by):
    shifted(monkeypatch, row, by)
    given = requests(5, max_new_tokens=12, ignore_eos=True)
    found = by_key(list(engine(slots=5, **PACKED).generate(given)))
    assert any(
        found[(request.id, 0, 0)].token_ids != reference("multi-head", request)[0]
        for request in given
    )


class FakeGraph:
    """Replays by running: what a graph does, without a card."""

    def __init__(self, run, key, outputs):
        self._run, self._key, self._outputs = run, key, outputs

    def replay(self):
        for static, new in zip(self._outputs, self._run(self._key), strict=True):
            static.copy_(new)


def captured_by(fault):
    """A capture that runs the step with idle places, as the real one does, or raises."""

    def capture(self, key):
        self._idle(key)
        outputs = self._run(key)
        if fault is not None and fault(key):
            raise fault(key)
        outputs = tuple(part.clone() for part in outputs)
        return Captured(graph=FakeGraph(self._run, key, outputs), outputs=outputs)

    return capture


def out_of_memory_from_four(key):
    """As the end of a capture tells it that ran out of memory on the way."""
    if key[0] < 4:
        return None
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    return error


def cannot(key):
    return RuntimeError("operation not permitted when stream is capturing")


def graphed(monkeypatch, fault=None, **options):
    """An engine that believes that it has graphs."""
    monkeypatch.setattr(graphs.Graphs, "_capture", captured_by(fault))
    made = engine(**{**PACKED, **options})
    batch = made._runner.batch
    assert batch is not None
    batch._graphs = graphs.Graphs(batch._run, batch._idle, made.llava.device, made.stats)
    batch._graphs.warm(batch.keys)
    return made, batch


def expect_reference(made, given):
    found = by_key(list(made.generate(given)))
    for request in given:
        assert found[(request.id, 0, 0)].token_ids == reference("multi-head", request)[0]


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_all_that_the_work_needs_is_captured_before_it_and_the_answers_are_the_same(
    monkeypatch, slots
):
    monkeypatch.setattr(decode_batch, "SPAN", 16)
    made, batch = graphed(monkeypatch, slots=slots)
    captured = dict(batch._graphs._captured)
    assert len(captured) > 1
    assert all(captured.values())
    seen, run = [], batch._graphs.run

    def noted(key):
        seen.append(key)
        return run(key)

    monkeypatch.setattr(batch._graphs, "run", noted)
    expect_reference(made, requests(9, max_new_tokens=18, ignore_eos=True))
    assert set(seen) <= set(captured), "a step was not captured before it was needed"
    assert captured == batch._graphs._captured


def test_a_bucket_without_memory_for_its_graph_decodes_without(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        made, batch = graphed(monkeypatch, out_of_memory_from_four, slots=8)
        expect_reference(made, requests(9))
    captured = batch._graphs._captured
    assert {key[0] >= 4 for key, graph in captured.items() if graph is None} == {True}
    assert made.stats.memory_backoffs == len([key for key in captured if key[0] >= 4]) > 0
    assert "no memory for a graph of" in caplog.text


def test_a_step_that_cannot_be_captured_decodes_without_graphs(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        made, batch = graphed(monkeypatch, cannot, slots=8)
        expect_reference(made, requests(9))
    assert len(batch._graphs._captured) == 1, "it is tried once"
    assert caplog.text.count("cannot be captured") == 1


def test_at_start_the_largest_bucket_is_captured_first(monkeypatch):
    monkeypatch.setattr(graphs.Graphs, "_capture", captured_by(None))
    made, batch = graphed(monkeypatch, slots=8)
    order = []

    def run(key):
        order.append(key)
        return (torch.zeros(1),) * 3

    monkeypatch.setattr(batch, "_run", run)
    capturing = graphs.Graphs(batch._run, batch._idle, made.llava.device, Stats())
    batch.sizes, batch.spans = [2, 8], [256, 300]
    capturing.warm(batch.keys)
    assert order == [(8, 300), (8, 256), (2, 300), (2, 256)]


def test_lag_and_graphs_are_refused_where_they_cannot_be_had():
    with pytest.raises(ValueError, match="lag cannot be had with attention 'torch'"):
        engine(attention="torch", lag=True)
    with pytest.raises(ValueError, match="graphs cannot be had on cpu, they are CUDA's"):
        engine(attention="sdpa", graphs=True)


class Cuda:
    """torch.cuda's streams and captures, as far as Graphs sees them: which stream is the thread's."""

    def __init__(self, monkeypatch) -> None:
        self.current, self.num_streams = "the thread's own", 0
        monkeypatch.setattr(torch.cuda, "Stream", self.new_stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(self.current))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "graph", partial(Capture, self))

    def new_stream(self, device):
        self.num_streams += 1
        return Stream(f"stream {self.num_streams}")

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before


class Stream:
    def __init__(self, name):
        self.name = name

    def wait_stream(self, other):
        assert other is not None


class Capture:
    """torch.cuda.graph: where the end of a capture raises, its stream stays the thread's."""

    def __init__(self, cuda, graph, pool, capture_error_mode, stream=None):
        self.cuda, self.stream = cuda, stream or Stream("torch's capture stream")

    def __enter__(self):
        self.before, self.cuda.current = self.cuda.current, self.stream.name

    def __exit__(self, kind, error, trace):
        if error is not None:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.current = self.before


def test_a_capture_that_fails_gives_the_thread_its_stream_back(monkeypatch):
    card, streams = Cuda(monkeypatch), []

    def run(key):
        streams.append(card.current)
        if len(streams) > graphs.NUM_WARM_UPS:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (torch.zeros(1),) * 3

    capturing = graphs.Graphs(run, lambda key: None, torch.device("cpu"), Stats())
    capturing.warm([(4, 256)])
    assert capturing._gave_up
    assert card.current == "the thread's own"
    assert set(streams) != {"the thread's own"}


def test_all_captures_are_on_one_stream_whose_workspace_they_share(monkeypatch):
    card, streams = Cuda(monkeypatch), []

    def run(key):
        streams.append(card.current)
        return (torch.zeros(1),) * 3

    capturing = graphs.Graphs(run, lambda key: None, torch.device("cpu"), Stats())
    capturing.warm([(8, 256), (4, 256), (2, 256)])
    assert all(capturing._captured.values())
    assert (card.num_streams, set(streams)) == (1, {"stream 1"})
    assert card.current == "the thread's own"


def on_a_card(*, rope="default", quantization=None):
    """Of a model, what is asked before graphs are captured, as if it lay on a card."""
    text = SimpleNamespace(rope_parameters={"rope_type": rope})
    config = SimpleNamespace(text_config=text, quantization_config=quantization)
    kernels = cuda.kernels("sdpa")
    card = torch.device("cuda")
    return SimpleNamespace(config=config, text_config=text, kernels=kernels, device=card)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"rope": "dynamic"}, "graphs cannot be had with dynamic rotary embeddings"),
        ({"quantization": {"load_in_8bit": True}}, "graphs cannot be had with int8 weights"),
        (
            {"quantization": SimpleNamespace(load_in_8bit=True)},
            "graphs cannot be had with int8 weights",
        ),
    ],
)
def test_graphs_are_off_for_what_waits_for_the_device_in_a_step(model, said):
    llava = on_a_card(**model)
    assert not device_option("graphs", None, llava)
    assert device_option("lag", None, llava)
    with pytest.raises(ValueError, match=said):
        device_option("graphs", True, llava)


def test_graphs_are_on_by_default_for_all_others_on_a_card():
    nf4 = SimpleNamespace(load_in_8bit=False, load_in_4bit=True)
    for model in ({}, {"rope": "yarn"}, {"quantization": nf4}, {"quantization": {"bits": 4}}):
        assert device_option("graphs", None, on_a_card(**model))
