"""Which weights learn by which rule, and how fast: Muon and AdamW under one schedule."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from llava_batch.demo.training.muon import Muon

MATRIX_RATE = 0.02
OTHER_RATE = 1.5e-3
NOT_MUON = ("embed", "heads", "linear_")  # the last: the projector, which it makes far too large
NUM_WARM_UP_STEPS = 100
LAST_RATE = 0.02  # of the rate, where the cosine ends


class Optimizers:
    """Muon for the layers' matrices, AdamW for all else, one schedule over both."""

    def __init__(self, modules: dict[float, list[nn.Module]]) -> None:
        """`modules`: share of the learning rate -> the modules that learn at it."""
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for share, group in modules.items():
            named = [pair for module in group for pair in module.named_parameters()]
            chosen = [p for name, p in named if _is_layer_matrix(name, p)]
            rest = [p for name, p in named if not _is_layer_matrix(name, p)]
            matrices.append({"params": chosen, "lr": MATRIX_RATE * share})
            others.append({"params": rest, "lr": OTHER_RATE * share})
        self.parameters = [p for group in matrices + others for p in group["params"]]
        adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
        self.optimizers = (Muon(matrices), adam)
        self.groups = [group for each in self.optimizers for group in each.param_groups]
        self.rates = [group["lr"] for group in self.groups]

    def step(self, loss: Tensor, rate: float) -> None:
        """One update; `rate` scales every learning rate."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        for group, full in zip(self.groups, self.rates, strict=True):
            group["lr"] = full * rate
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


class Schedule:
    """Warm-up, then a cosine over the steps, or over the minutes where those run out first."""

    def __init__(self, num_steps: int, minutes: float | None = None, peak: float = 1.0) -> None:
        self.num_steps, self.minutes, self.peak = num_steps, minutes, peak
        self.since = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.since

    def progress(self, step: int) -> float:
        spent = self.seconds() / 60 / self.minutes if self.minutes else 0.0
        return max(step / self.num_steps, spent)

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / NUM_WARM_UP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress(step))))
        return self.peak * warm * (LAST_RATE + (1 - LAST_RATE) * cosine)


def _is_layer_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and not any(word in name for word in NOT_MUON)
