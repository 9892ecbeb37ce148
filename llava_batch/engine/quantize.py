"""Weights of the language model in 4 or 8 bits, by bitsandbytes: names, configs, what they need.

Only the linear layers of the decoder are quantized: the vision tower, the projector, the embeddings
and `lm_head` keep the engine's dtype, as does the K/V cache. Products are bitsandbytes' own, so the
fused CPU kernels step aside. Answers are those of the quantized model and not of the float one, and
bitsandbytes does not keep promises about batches: `int8` takes the columns with outliers out of a
whole batch at once and casts activations to float16, and 4-bit products are taken in bfloat16 on
processors with AVX512-BF16, whatever the dtype.
"""

import importlib.util
import logging
from typing import Any

import torch

NAMES = ("nf4", "fp4", "int8")
PACKAGES = ("bitsandbytes", "accelerate")
KEPT = [".*vision_tower", ".*multi_modal_projector", "lm_head"]
"""Patterns of module names, as transformers' `llm_int8_skip_modules` takes them."""


def check(quantization: str, attention: str) -> None:
    """Refuse what cannot be had, before any weight is read.

    Raises:
        ValueError: an unknown name, a package that is not installed, or fused kernels asked for.
    """
    if quantization not in NAMES:
        raise ValueError(f"quantization is {quantization!r}, must be one of {', '.join(NAMES)}")
    if attention == "native":
        raise ValueError(
            f"attention 'native' cannot be had with quantization {quantization!r}: its kernels "
            "read float weights; use torch or auto"
        )
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"quantization {quantization!r} needs {' and '.join(missing)}: "
            "pip install 'llava-batch[quant]'"
        )


def loading(quantization: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantize while loading, straight to the device."""
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        _hush_casts()
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=KEPT,
        )
    return {"quantization_config": config, "device_map": {"": torch.device(device)}}


def _hush_casts() -> None:
    """bitsandbytes warns of its cast to float16 in every layer of every step."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)


def _is_no_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)
