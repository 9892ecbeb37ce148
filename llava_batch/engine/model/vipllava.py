"""VipLLaVA: the projector reads several of the tower's layers side by side, and never the class token.

See transformers' VipLlavaModel, which knows no `vision_feature_select_strategy`.
"""

from llava_batch.engine.model.vision import Vision


class VipLlava(Vision):
    """As LLaVA's; `vision_feature_layer` is mostly a list."""

    @property
    def drops_first(self) -> bool:
        """Always."""
        return True
