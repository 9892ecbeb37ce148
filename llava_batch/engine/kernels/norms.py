"""The language models' RMSNorms in one kernel each, for a card: transformers' own are six launches.

A decode step on a card is short kernels mostly, of which each costs some microseconds whatever it computes.
torch's `rms_norm` computes in float32 and rounds once; transformers rounds before the weight, too, so that in
bfloat16 the last bit may differ.
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


def exchange_norms(model: nn.Module) -> None:
    """Exchange every norm of NORMS in a model, where it lies."""
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if type(child).__name__ in NORMS:
                setattr(part, name, OneKernelNorm(child))
