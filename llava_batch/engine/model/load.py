"""From a folder or hub id to a model in memory: device, dtype, quantization, weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as remember
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel

from llava_batch.engine.kernels import choose
from llava_batch.engine.kernels.contract import Place
from llava_batch.engine.model import memory, quantize, supported
from llava_batch.engine.model.load_times import Startup
from llava_batch.engine.model.sizing import card, choose_max_tokens, choose_slot_tokens
from llava_batch.engine.model.vision import Normalisation, read_normalisation

BFLOAT16_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint in memory, and what an engine over it needs to know."""

    model: PreTrainedModel
    normalisation: Normalisation
    decode: Callable[[list[int]], str]
    seconds: dict[str, float]


def read(
    model: str | Path,
    *,
    dtype: str | torch.dtype,
    device: str,
    quantization: str | None,
    revision: str | None,
    slot_tokens: int | str,
    max_tokens: int | str,
    attention: str,
) -> Loaded:
    """Check what is asked for, then read the weights; see `Engine.load`."""
    startup = Startup()
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    if quantization is not None:
        quantize.refuse(quantization, kind, capability(place))
    choose.refuse(
        attention,
        Place(
            device=torch.device(place).type,
            dtype=kind,
            capability=capability(place),
            quantized=quantization is not None,
        ),
    )
    folder = find(model, revision)
    refuse_what_cannot_be_loaded(folder, kind, place, quantization, slot_tokens, max_tokens)
    startup.end("find_files")
    loaded = read_weights(folder, kind, place, quantization)
    startup.end("read_weights")
    return Loaded(
        model=loaded,
        normalisation=read_normalisation(processor_files(folder)),
        decode=decoder(folder),
        seconds=startup.seconds,
    )


def find(model: str | Path, revision: str | None) -> Path:
    """The folder that holds the checkpoint; a hub id is downloaded unless it is there already."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            str(model), revision=revision, ignore_patterns=["*.bin", "*.pth", "*.gguf"]
        )
    )


def read_weights(
    folder: Path, dtype: torch.dtype, device: str, quantization: str | None
) -> PreTrainedModel:
    """The model on the device in `dtype`, its decoder quantized while it is read.

    safetensors files are mapped, not read: the pages are the kernel's, so that a node's disk gives them
    once however many workers load them. On CPU, weights that are stored in `dtype` stay such pages
    and all workers share them (the fused kernels make packed copies of their own); others are
    converted, one tensor after the other. On a card each tensor goes from its pages to the device,
    in `dtype`, before the next: the host never holds the model a second time.
    """
    how: dict[str, Any] = {}
    if quantization is not None:
        how["quantization_config"] = quantize.config(quantization, dtype)
    if quantization is not None or device != "cpu":  # a map asks for accelerate
        how["device_map"] = {"": torch.device(device)}
    loaded: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, **how
    )
    if device != "cpu":
        torch.cuda.synchronize(device)  # so that the time is this phase's and not the next one's
    return loaded


def refuse_what_cannot_be_loaded(
    folder: Path,
    dtype: torch.dtype,
    device: str,
    quantization: str | None,
    slot_tokens: int | str,
    max_tokens: int | str,
) -> None:
    """Raise ValueError, before any weight is read, where a model is not `supported`, a quantized checkpoint
    is to be quantized again, or weights and one slot exceed the card."""
    config: Any = AutoConfig.from_pretrained(folder)
    supported.refuse(config)
    if quantization is not None and quantize.is_quantized(config):
        raise ValueError(
            f"quantization is {quantization!r}: {folder} is quantized already, drop it"
        )
    max_tokens = choose_max_tokens(config.text_config, max_tokens)
    if device == "cpu":
        return
    found = memory.why_not(
        config,
        list(memory.headers(folder)),
        card(device),
        dtype=dtype,
        quantization=quantization,
        slot_tokens=choose_slot_tokens(config, slot_tokens, max_tokens),
    )
    if found:
        raise ValueError(f"{folder}: {found}")


def choose_device(device: str) -> str:
    """ "auto" is CUDA where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype:
    """ "auto": float32 on CPU; bfloat16 on cards that compute in it (compute capability 8.0, Ampere,
    and newer), float16 on older ones, where bfloat16 is emulated."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        found = capability(device)
        if found is None:
            return torch.float32
        return torch.bfloat16 if found >= BFLOAT16_CAPABILITY else torch.float16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f"dtype is {dtype!r}, must be auto or one of {', '.join(known)}")
    return known[dtype]


def capability(device: str) -> tuple[int, int] | None:
    """The CUDA compute capability; None for a CPU."""
    return None if device == "cpu" else torch.cuda.get_device_capability(device)


def processor_files(folder: Path) -> list[Path]:
    """The processor's settings that are there, the newer form first."""
    names = ("processor_config.json", "preprocessor_config.json")
    return [path for name in names if (path := folder / name).is_file()]


def decoder(folder: Path) -> Callable[[list[int]], str]:
    """Token ids to text by the checkpoint's tokenizer, which is loaded when first needed.

    Special tokens are left out and blanks are kept as they are, whatever the checkpoint's settings say:
    tidied up, a text would not be made of its tokens' texts any more.
    """

    @remember
    def tokenizer() -> Any:
        return AutoTokenizer.from_pretrained(folder)

    return lambda ids: tokenizer().decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
