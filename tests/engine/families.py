"""Configs of every language model, tower and rotary embedding on the list of those that the engine takes."""

from typing import Any

from tiny_llava import COMMON, PATCH, SIZE
from transformers import (
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

GROUPED = COMMON | {"num_key_value_heads": 2, "tie_word_embeddings": False}
WINDOW = {"sliding_window": 24}


def text(kind: str):
    """A config of one of `supported.TEXTS`, with what sets it apart in its attention."""
    return {
        "llama": lambda: LlamaConfig(**GROUPED, attention_bias=True),
        "mistral": lambda: MistralConfig(**GROUPED, **WINDOW),
        "qwen2": lambda: Qwen2Config(
            **GROUPED, **WINDOW, use_sliding_window=True, max_window_layers=1
        ),
        "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=32),
        "phi": lambda: PhiConfig(**GROUPED, partial_rotary_factor=0.5),
        "phi3": lambda: Phi3Config(**GROUPED, **WINDOW, partial_rotary_factor=0.5),
        "gemma": lambda: GemmaConfig(**GROUPED, head_dim=24),
        "granite": lambda: GraniteConfig(
            **GROUPED, attention_multiplier=0.2, residual_multiplier=0.7, embedding_multiplier=3.0
        ),
        "smollm3": lambda: SmolLM3Config(**GROUPED, no_rope_layer_interval=2),
    }[kind]()


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH}  # fmt: skip


def roped(kind: str, positions: int = 160, **more) -> LlamaConfig:
    parameters = {"rope_type": kind, "rope_theta": 10_000.0, **more}
    sizes = GROUPED | {"max_position_embeddings": positions}
    return LlamaConfig(**sizes, rope_parameters=parameters)


ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 64},
    "dynamic": {"factor": 4.0},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0,
                 "original_max_position_embeddings": 100},
}  # fmt: skip
