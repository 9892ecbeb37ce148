"""Weights of the language model in 4 or 8 bits: names, configs, what they need.

| name | by | weights | products |
|---|---|---|---|
| `nf4`, `fp4` | bitsandbytes | 4 bits, a scale for 64 | in the dtype; in bfloat16 on CPUs with AVX512-BF16 |
| `int8` | bitsandbytes | 8 bits, a scale for a row | in int8, columns with outliers in float16 |
| `int8wo` | torchao | 8 bits, a scale for a row | in the dtype |
| `fp8` | torchao | float8 e4m3, a scale for a row | in float8, activations scaled row by row |

Only the linear layers of the decoder are quantized: the vision tower, the projector, the embeddings
and `lm_head` keep the engine's dtype, as does the K/V cache. The fused CPU kernels read float
weights and step aside. Answers are those of the quantized model and not of the float one, and no
promise about batches is kept: `int8` takes the columns with outliers out of a whole batch at once,
which also waits for the device, so that no CUDA graph can hold it.

torchao's `int8` with quantized activations is not here: outside of torch.compile it prints each
activation to look at its type, which waits for the device in every layer (`safe_int_mm` of 0.18).
"""

import importlib.util
import logging
from typing import Any

import torch

BITSANDBYTES, TORCHAO = ("nf4", "fp4", "int8"), ("int8wo", "fp8")
NAMES = (*BITSANDBYTES, *TORCHAO)
FP8_CAPABILITY = (8, 9)
KEPT = [".*vision_tower", ".*multi_modal_projector", "lm_head"]
"""Patterns of module names, as transformers takes them for what is not to be quantized."""


def packages(quantization: str) -> tuple[str, str]:
    """What must be installed."""
    return ("bitsandbytes" if quantization in BITSANDBYTES else "torchao", "accelerate")


def why_not(quantization: str, dtype: str, capability: tuple[int, int] | None) -> str | None:
    """Why it cannot be had, with what to do; None if it can.

    dtype: `bfloat16` and so on. capability: the card's CUDA compute capability, None for a CPU.
    """
    if quantization not in NAMES:
        return f"must be one of {', '.join(NAMES)}"
    if quantization == "fp8" and (capability is None or capability < FP8_CAPABILITY):
        here = "this is a CPU" if capability is None else "this card has {}.{}".format(*capability)
        return (
            "needs a card of compute capability 8.9 or newer (Ada, Hopper, Blackwell), "
            f"{here}; take int8 or nf4"
        )
    if quantization == "fp8" and dtype != "bfloat16":
        return f"goes with dtype bfloat16 only, this is {dtype}"
    missing = [name for name in packages(quantization) if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}; pip install 'llava-batch[quant]'"
    return None


def refuse(quantization: str, dtype: torch.dtype, capability: tuple[int, int] | None) -> None:
    """Refuse what cannot be had, before any weight is read.

    Raises:
        ValueError: see `why_not`.
    """
    found = why_not(quantization, str(dtype).removeprefix("torch."), capability)
    if found:
        raise ValueError(f"quantization is {quantization!r}: {found}")


def is_quantized(config: Any) -> bool:
    """Whether a model's weights are quantized, or stored so in its checkpoint."""
    return getattr(config, "quantization_config", None) is not None


def is_int8(config: Any) -> bool:
    """Whether a model's weights are bitsandbytes' in 8 bits, whether stored so or quantized here."""
    how = getattr(config, "quantization_config", None)
    return bool(
        how.get("load_in_8bit") if isinstance(how, dict) else getattr(how, "load_in_8bit", 0)
    )


def config(quantization: str, dtype: torch.dtype) -> Any:
    """transformers' config that quantizes while loading."""
    if quantization in TORCHAO:
        return _torchao_config(quantization)
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        _hush_casts()
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=KEPT,
    )


def _torchao_config(quantization: str) -> Any:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )
    from transformers import TorchAoConfig

    # Its recommended settings of inductor are the whole process's, and nothing is compiled here.
    how = (
        Int8WeightOnlyConfig(set_inductor_config=False)
        if quantization == "int8wo"
        else Float8DynamicActivationFloat8WeightConfig(
            granularity=PerRow(), set_inductor_config=False
        )
    )
    return TorchAoConfig(how, modules_to_not_convert=KEPT)


def _hush_casts() -> None:
    """bitsandbytes warns of its cast to float16 in every layer of every step."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)


def _is_no_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)
