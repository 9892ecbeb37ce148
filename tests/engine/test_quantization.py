"""Quantized weights on CPU: the demo model answers nearly as well with nf4 and int8 as in float32."""

import importlib.util
from functools import cache

import numpy as np
import pytest
import torch

from llava_batch.demo import model_path
from llava_batch.demo.evaluate import held_out
from llava_batch.demo.questions import Question, questions
from llava_batch.demo.scenes import draw
from llava_batch.demo.scoring import score_answer
from llava_batch.engine import Engine, Request, quantize

NUM_SCENES, PER_SCENE = 60, 2
WORST = 0.05
"""Share of the answers that quantizing may cost; the tiny layers of the demo model suffer most."""

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in quantize.PACKAGES),
    reason="needs the quant extra (bitsandbytes, accelerate)",
)


@cache
def asked() -> tuple[list[Request], dict[str, Question]]:
    """Held-out scenes, each with a few of its questions."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model_path(), backend="pil")
    requests, wanted = [], {}
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
    engine = Engine.load(
        model_path(), quantization=quantization, dtype="float32", slots=16, max_tokens=256
    )
    requests, wanted = asked()
    right = [
        score_answer(wanted[done.id], tokenizer.decode(done.token_ids, skip_special_tokens=True))
        for done in engine.generate(requests)
    ]
    assert len(right) == len(requests)
    share = sum(right) / len(right)
    print(f"{quantization or 'float32'}: {sum(right)} of {len(right)} right ({share:.1%})")
    return share


@needs_packages
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_model_answers_nearly_as_well_as_in_float32(quantization: str) -> None:
    assert accuracy(quantization) >= accuracy(None) - WORST


@needs_packages
@pytest.mark.parametrize(("quantization", "bytes_each"), [("nf4", 0.5), ("fp4", 0.5), ("int8", 1)])
def test_only_the_decoders_linears_are_quantized(quantization: str, bytes_each: float) -> None:
    engine = Engine.load(model_path(), quantization=quantization, slots=1, max_tokens=128)
    assert engine.llava.attention == "torch"
    model = engine.llava.model
    quantized = {
        name
        for name, part in model.named_modules()
        if type(part).__module__.startswith("bitsandbytes")
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
    assert weight.numel() * weight.element_size() == 128 * 384 * bytes_each
    assert model.lm_head.weight.dtype == torch.float32


@needs_packages
def test_the_fused_kernels_asked_for_with_quantization_are_refused() -> None:
    with pytest.raises(ValueError, match="'native' cannot be had with quantization 'nf4'"):
        Engine.load(model_path(), quantization="nf4", attention="native")


def test_an_unknown_quantization_is_refused_before_the_weights_are_read() -> None:
    with pytest.raises(ValueError, match="quantization is 'int2', must be one of nf4, fp4, int8"):
        Engine.load("/no/such/folder", quantization="int2")


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch) -> None:
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'llava-batch\[quant\]'"):
        Engine.load("/no/such/folder", quantization="nf4")


def test_a_job_says_so_before_anything_starts(monkeypatch) -> None:
    from llava_batch import plan
    from llava_batch.errors import UsageError
    from llava_batch.job import Job

    with pytest.raises(UsageError, match="--attention native"):
        Job(quantization="nf4", attention="native")
    with pytest.raises(UsageError, match="--attention native: its kernels are for CPUs"):
        plan.make_plan(Job(attention="native"), on_gpu=True)
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--quantization int8: needs bitsandbytes.*\[quant\]"):
        plan.make_plan(Job(quantization="int8"), on_gpu=False)
