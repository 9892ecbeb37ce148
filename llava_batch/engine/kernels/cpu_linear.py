"""A linear layer of the fast CPU form: its weight as oneDNN wants it, the same bits for a row whoever is beside it.

Legend: C inner size.
"""

import torch
from torch import nn


class PackedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer whose weight lies as oneDNN wants it; several side by side become one."""

    def __init__(self, *parts: nn.Linear) -> None:
        super().__init__()
        weights = [part.weight.detach() for part in parts]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        biases = [part.bias for part in parts]
        self.bias = None
        if any(bias is not None for bias in biases):
            sizes = [part.out_features for part in parts]
            zeros = [weight.new_zeros(size) for size in sizes]
            given: list[torch.Tensor] = [
                zero if bias is None else bias for bias, zero in zip(biases, zeros, strict=True)
            ]
            self.bias = torch.cat(given).detach()

    def forward(self, x: torch.Tensor, then: str = "none", form: str = "") -> torch.Tensor:
        """`[..., C]` -> `[..., out]`; `then` is done in the same pass: `none`, `swish` for SiLU, or `gelu`.

        form: which gelu, one of the values of GELUS.
        """
        if x.numel() == x.shape[-1]:
            both = torch.ops.mkldnn._linear_pointwise(
                twice(x), self.packed, self.bias, then, [], form
            )
            return both[:1].view(*x.shape[:-1], -1)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, then, [], form)

    def times(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., out]`, each multiplied by `factor` `[..., out]` in the same pass."""
        multiplied = torch.ops.mkldnn._linear_pointwise.binary
        if x.numel() == x.shape[-1]:
            both = multiplied(twice(x), twice(factor), self.packed, self.bias, "mul")
            return both[:1].view_as(factor)
        return multiplied(x, factor, self.packed, self.bias, "mul")


def twice(x: torch.Tensor) -> torch.Tensor:
    """A single row `[..., C]` -> `[2, C]`.

    oneDNN adds a row's products in one order for any number of rows from two on, and in another for one
    alone where C is more than 1,024; the bits of a row must not tell how many others there were.
    """
    return x.reshape(1, -1).expand(2, -1).contiguous()
