"""The language models' RMSNorms by torch's own function, for a card: transformers' own are six launches each.

A decode step on a card is short kernels mostly, of which each costs some microseconds whatever it computes; torch has
one kernel for a whole norm there (not counted on a card of ours). It computes in float32 and rounds once;
transformers rounds before the weight, too, so that in bfloat16 the last bit may differ.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm"})
"""Classes of transformers that are exchanged, here and on CPU."""


class OneKernelNorm(nn.Module):  # type: ignore[misc]
    """RMSNorm by torch's own function."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., C]`."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


def exchange_norms(model: Any) -> None:
    """Exchange every norm of NORMS in a model, where it lies; not one that is kept in another dtype than the model's,
    whose output transformers gives in that."""
    dtype = model.get_input_embeddings().weight.dtype
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if type(child).__name__ in NORMS and child.weight.dtype == dtype:
                setattr(part, name, OneKernelNorm(child))
