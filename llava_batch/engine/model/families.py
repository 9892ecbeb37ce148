"""Whose images are made into features how: one file for each family, told by its config."""

from typing import Any

from transformers import PreTrainedModel

from llava_batch.engine.model.llava_next import LlavaNext
from llava_batch.engine.model.llava_onevision import LlavaOnevision
from llava_batch.engine.model.pixtral import Pixtral
from llava_batch.engine.model.vipllava import VipLlava
from llava_batch.engine.model.vision import Normalisation, Vision

VISIONS: dict[str, type[Vision]] = {
    "llava": Vision,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaOnevision,
    "vipllava": VipLlava,
}
"""By transformers' name of the family."""


def vision_of(model: PreTrainedModel, normalisation: Normalisation) -> Vision:
    """The vision side of a model that is `supported`."""
    config: Any = model.config
    is_pixtral = config.vision_config.model_type == "pixtral"
    kind = Pixtral if is_pixtral else VISIONS[config.model_type]
    return kind(model, normalisation)
