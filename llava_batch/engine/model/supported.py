"""Which models the engine takes, told from the config alone: those that are tested to be exact.

Another language model may ask its attention for what is not implemented, another tower may give as many
features as it likes: such a model is refused by name before its weights are read.
"""

from typing import Any

TOWERS = {
    "llava": ("clip_vision_model", "siglip_vision_model", "pixtral"),
    "llava_next": ("clip_vision_model", "siglip_vision_model"),
    "llava_onevision": ("siglip_vision_model",),
    "vipllava": ("clip_vision_model",),
}
"""The vision towers of each family, by transformers' names."""
TILED = ("llava_next", "llava_onevision")
"""Families that cut an image of any resolution into tiles."""
TEXTS = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "granite", "smollm3")
ROPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
"""`dynamic` changes its frequencies behind the model's last position, which no slot reaches;
`longrope` behind `original_max_position_embeddings`, where its slots end (`num_positions`)."""


def why_not(config: Any) -> str | None:
    """Why a model of this config is not taken, with what is; None if it is."""
    family = config.model_type
    if family not in TOWERS:
        return f"it is a {family} model; the engine takes {_listed(tuple(TOWERS))}"
    tower, text = config.vision_config.model_type, config.text_config.model_type
    if tower not in TOWERS[family]:
        return f"its vision tower is {tower}; the engine takes {_listed(TOWERS[family])}"
    if text not in TEXTS:
        return f"its language model is {text}; the engine takes {_listed(TEXTS)}"
    rope = rope_type(config.text_config)
    if rope not in ROPES:
        return f"its rotary embedding is {rope}; the engine takes {_listed(ROPES)}"
    return _why_not_layers(config) or _why_not_tiles(config)


def _why_not_tiles(config: Any) -> str | None:
    """A tower whose features are no rectangle, where they are put together to a map."""
    is_pixtral = config.vision_config.model_type == "pixtral"
    if is_pixtral and config.vision_feature_select_strategy != "full":
        return (
            f"vision_feature_select_strategy is {config.vision_feature_select_strategy} with Pixtral's "
            "tower, which has no class token; the engine takes full"
        )
    if config.model_type not in TILED:
        return None
    class_token = config.vision_config.model_type == "clip_vision_model"
    wanted = "default" if class_token else "full"
    if config.vision_feature_select_strategy != wanted:
        return (
            f"vision_feature_select_strategy is {config.vision_feature_select_strategy} with a tower "
            f"that has {'a' if class_token else 'no'} class token; the engine takes {wanted}"
        )
    side = config.vision_config.image_size
    if any(length % side for size in config.image_grid_pinpoints for length in size):
        return (
            f"image_grid_pinpoints are {config.image_grid_pinpoints}; the engine takes grids of whole "
            f"tiles of {side} pixels"
        )
    return None


def _why_not_layers(config: Any) -> str | None:
    """A `vision_feature_layer` that the tower does not have, or that transformers does not read."""
    asked, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layers = [asked] if isinstance(asked, int) else asked
    if asked == 0 or not layers or not all(-depth - 1 <= layer <= depth for layer in layers):
        return (
            f"vision_feature_layer is {asked}; the engine takes a layer from {-depth - 1} to {depth} "
            "but for 0 alone, or a list of layers"
        )
    return None


def refuse(config: Any) -> None:
    """Refuse a model that the engine is not known to be exact for.

    Raises:
        ValueError: see `why_not`.
    """
    found = why_not(config)
    if found is not None:
        raise ValueError(f"this model cannot be had: {found}")


def num_positions(text: Any) -> int | None:
    """Positions that a language model has frequencies for, by its config; None where it does not say."""
    if rope_type(text) == "longrope":
        original: int = text.rope_parameters["original_max_position_embeddings"]
        return original
    return getattr(text, "max_position_embeddings", None)


def waits_for_the_device(text: Any) -> bool:
    """Whether the rotary embedding looks at a step's positions on the host."""
    return rope_type(text) == "dynamic"


def rope_type(text: Any) -> str:
    """Which of ROPES, by transformers' name."""
    said: str = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    return said


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
