"""Quantized weights on CPU: the demo model answers nearly as well as in float32, whatever the kind.

fp8 is for cards: here its products run on the CPU, with torchao's look at the hardware taken out.
"""

import importlib.util
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_batch import job
from llava_batch.demo import model_path
from llava_batch.demo.questions import Question, questions
from llava_batch.demo.scenes import draw
from llava_batch.demo.scoring import score_answer
from llava_batch.demo.training.evaluate import held_out
from llava_batch.driver.refusals import refuse_what_is_missing
from llava_batch.engine import Engine, Request
from llava_batch.engine.model import load, quantize
from llava_batch.errors import UsageError
from llava_batch.job import Job

NUM_SCENES, PER_SCENE = 60, 2
WORST = 0.05
"""Share of the answers that quantizing may cost; the tiny layers of the demo model suffer most."""

needs_packages = pytest.mark.skipif(
    any(
        importlib.util.find_spec(p) is None
        for name in quantize.NAMES
        for p in quantize.packages(name)
    ),
    reason="needs the quant extra (accelerate, bitsandbytes, torchao)",
)


@pytest.fixture
def fp8_anywhere(monkeypatch) -> None:
    """Let float8 products run on a CPU."""
    api = pytest.importorskip("torchao.quantization.quant_api")
    monkeypatch.setattr(api, "_check_hardware_support", lambda _: None)
    monkeypatch.setattr(quantize, "FP8_CAPABILITY", (0, 0))
    monkeypatch.setattr(load, "capability", lambda _: (0, 0))


@cache
def asked() -> tuple[list[Request], dict[str, Question]]:
    """Held-out scenes, each with a few of its questions."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model_path(), backend="pil")
    requests: list[Request] = []
    wanted: dict[str, Question] = {}
    for number, scene in enumerate(held_out(NUM_SCENES)):
        pixels = processor.image_processor(
            images=[draw(scene, short_side=224)],
            do_rescale=False,
            do_normalize=False,
            return_tensors="np",
        )["pixel_values"].astype(np.uint8)
        for question in (questions(scene) * 2)[number % 3 :][:PER_SCENE]:
            prompt = f"USER: {'<image>' * 64}\n{question.question} ASSISTANT:"
            made = Request(
                id=str(len(requests)),
                pixels=pixels,
                prompt_ids=processor.tokenizer(prompt).input_ids,
                max_new_tokens=16,
            )
            requests.append(made)
            wanted[made.id] = question
    return requests, wanted


@cache
def accuracy(quantization: str | None) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    engine = loaded(quantization, slots=16, max_tokens=256)
    requests, wanted = asked()
    right = [
        score_answer(wanted[done.id], tokenizer.decode(done.token_ids, skip_special_tokens=True))
        for done in engine.generate(requests)
    ]
    assert len(right) == len(requests)
    return sum(right) / len(right)


def loaded(quantization: str | None, **options) -> Engine:
    dtype = "bfloat16" if quantization == "fp8" else "float32"
    return Engine.load(model_path(), quantization=quantization, dtype=dtype, **options)


@needs_packages
@pytest.mark.parametrize("quantization", quantize.NAMES)
def test_a_quantized_model_answers_nearly_as_well_as_in_float32(
    quantization: str, request: pytest.FixtureRequest
) -> None:
    plain = accuracy(None)
    if quantization == "fp8":
        request.getfixturevalue("fp8_anywhere")
    assert accuracy(quantization) >= plain - WORST


@needs_packages
@pytest.mark.parametrize(
    ("quantization", "bytes_each"),
    [("nf4", 0.5), ("fp4", 0.5), ("int8", 1), ("int8wo", 1), ("fp8", 1)],
)
def test_only_the_decoders_linears_are_quantized(
    quantization: str, bytes_each: float, request: pytest.FixtureRequest
) -> None:
    if quantization == "fp8":
        request.getfixturevalue("fp8_anywhere")
    engine = loaded(quantization, slots=1, max_tokens=128)
    assert engine.llava.kernels.name != "native"
    model = engine.llava.model
    quantized = {
        name.removesuffix(".weight")
        for name, weight in model.named_parameters()
        if hasattr(weight, "qdata") or type(weight) is not torch.nn.Parameter
    }
    linears = {
        f"model.language_model.layers.{layer}.{part}"
        for layer in range(model.config.text_config.num_hidden_layers)
        for part in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
        )
    }
    assert quantized == linears
    weight = model.get_submodule("model.language_model.layers.0.mlp.up_proj").weight
    held = getattr(weight, "qdata", weight)
    assert held.numel() * held.element_size() == 128 * 384 * bytes_each
    if quantization in ("nf4", "fp4"):
        assert weight.quant_state.quant_type == quantization
    assert model.lm_head.weight.dtype == engine.llava.dtype


@needs_packages
def test_a_checkpoint_that_is_quantized_already_is_taken_as_it_is(tmp_path) -> None:
    from transformers import AutoTokenizer

    model = load.read_weights(Path(model_path()), torch.float32, "cpu", "nf4")
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(tmp_path)
    engine = Engine.load(tmp_path, dtype="float32", slots=16, max_tokens=256)
    assert engine.llava.kernels.name != "native"
    requests = asked()[0][:16]
    again = {c.id: c.token_ids for c in engine.generate(requests)}
    first = {c.id: c.token_ids for c in loaded("nf4", slots=16, max_tokens=256).generate(requests)}
    assert again == first
    with pytest.raises(ValueError, match="quantized already, drop it"):
        Engine.load(tmp_path, quantization="nf4")


@needs_packages
def test_the_fused_kernels_asked_for_with_quantization_are_refused() -> None:
    with pytest.raises(ValueError, match="'native' cannot be had: its kernels read float weights"):
        Engine.load(model_path(), quantization="nf4", attention="native")


def test_an_unknown_quantization_is_refused_before_the_weights_are_read() -> None:
    with pytest.raises(ValueError, match="quantization is 'int2': must be one of nf4, fp4, int8"):
        Engine.load("/no/such/folder", quantization="int2")


@pytest.mark.parametrize(
    ("capability", "dtype", "said"),
    [
        (None, "bfloat16", "needs a card of compute capability 8.9 or newer .* this is a CPU"),
        ((8, 6), "bfloat16", r"8.9 or newer .* this card has 8\.6; take int8 or nf4"),
        ((9, 0), "float16", "goes with dtype bfloat16 only, this is float16"),
    ],
)
def test_fp8_where_it_cannot_be_had_says_what_it_needs(capability, dtype, said) -> None:
    assert re.search(said, quantize.why_not("fp8", dtype, capability) or "")


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package in (("nf4", "bitsandbytes"), ("int8wo", "torchao")):
        with pytest.raises(
            ValueError, match=rf"{package} and .*pip install 'llava-batch\[quant\]'"
        ):
            Engine.load("/no/such/folder", quantization=name)


def test_the_flag_takes_what_the_engine_offers() -> None:
    assert job._ALLOWED["quantization"] == (None, *quantize.NAMES)


def test_a_job_says_so_before_anything_starts(monkeypatch) -> None:
    with pytest.raises(UsageError, match="--attention native: its kernels read float weights"):
        both = Job(quantization="nf4", attention="native", dtype="float32")
        refuse_what_is_missing(both, on_gpu=False, card=None)
    with pytest.raises(UsageError, match="--attention native: it needs a CPU device"):
        placed = Job(attention="native", dtype="bfloat16")
        refuse_what_is_missing(placed, on_gpu=True, card=None)
    with pytest.raises(UsageError, match="--quantization fp8: needs a card"):
        refuse_what_is_missing(Job(quantization="fp8", dtype="float32"), on_gpu=False, card=None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--quantization int8: needs bitsandbytes.*\[quant\]"):
        refuse_what_is_missing(Job(quantization="int8", dtype="float32"), on_gpu=False, card=None)
