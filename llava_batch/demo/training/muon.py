"""Muon: momentum whose matrix is orthogonalised before it is applied, for 2-D layer weights.

After Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Matrices of
one shape are orthogonalised as one batch, which on a CPU with small matrices is what makes it
cheap. torch.optim.Muon does the same one matrix at a time.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)  # the paper's coefficients: fast, and only roughly orthogonal


def orthogonalise(matrices: Tensor, *, num_steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on [n, rows, columns]: singular values are driven towards 1."""
    a, b, c = _QUINTIC
    wide = matrices.shape[-1] >= matrices.shape[-2]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """`lr` is the size of a step in units of an orthogonal matrix; Nesterov momentum and
    decoupled weight decay, which keeps the residual stream from growing without end."""

    def __init__(
        self, params: Iterable[dict[str, Any]], *, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"momentum": momentum, "weight_decay": weight_decay, "lr": 0.02})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step_alike(parameters, group)

    def _step_alike(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        moved = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            velocity = state["momentum"].lerp_(gradient, 1 - momentum)
            moved.append(gradient.lerp(velocity, momentum))
        rows, columns = parameters[0].shape
        scale = lr * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, orthogonalise(torch.stack(moved)), strict=True):
            parameter.mul_(1 - lr * group["weight_decay"]).sub_(update, alpha=scale)
