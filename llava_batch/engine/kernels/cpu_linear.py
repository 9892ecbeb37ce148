"""Linear layers of the fast CPU form: the same bits for a row whoever is beside it.

`linear` and `gated` make them: on panels of our own (`cpu_matmul.cpp`), or as oneDNN wants them in bfloat16 where the
processor multiplies matrices by itself (AMX), which oneDNN uses, and where an entry of C has no neighbour.
Legend: C inner size, N columns.
"""

from collections.abc import Sequence

import torch
from torch import nn

from llava_batch.engine import pages
from llava_batch.engine.kernels import cpu, cpu_build
from llava_batch.engine.views import joined

COLUMNS = 64
"""Of a panel; as `kColumns` in `cpu_matmul.cpp`."""


def linear(*parts: nn.Linear) -> "PackedLinear | PanelLinear":
    """One layer, or several side by side as one."""
    return PanelLinear(*parts) if panels_are_best(parts[0].weight) else PackedLinear(*parts)


def gated(gate: nn.Linear, up: nn.Linear) -> "PackedGated | PanelGated":
    """SiLU of the one layer times the other."""
    return PanelGated(gate, up) if panels_are_best(gate.weight) else PackedGated(gate, up)


def in_two(
    first: nn.Linear, *others: nn.Linear
) -> tuple["PanelLinear | None", "PackedLinear | PanelLinear", "PackedLinear | PanelLinear"]:
    """All layers side by side as one, then the first by itself and the others as one, on the same memory.

    In place of the first of the three None, and the two on their own memory, where the first layer ends within a panel or
    they are oneDNN's.
    """
    if not panels_are_best(first.weight) or first.out_features % COLUMNS:
        return None, linear(first), linear(*others)
    every = PanelLinear(first, *others)
    return every, *every.split(first.out_features)


def panels_are_best(weight: torch.Tensor) -> bool:
    """Whether a weight `[N, C]` is to lie in panels rather than as oneDNN wants it."""
    if weight.dtype == torch.float32:
        return True
    return weight.shape[1] % 2 == 0 and "amx_bf16" not in cpu_build.cpu_flags()


class PanelLinear(nn.Module):  # type: ignore[misc]
    """A linear layer whose weight lies in panels; several side by side are one."""

    def __init__(self, *parts: nn.Linear) -> None:
        super().__init__()
        weight = joined([part.weight.detach() for part in parts])
        bias = biases(parts)
        self.weight = cpu.Panels(
            in_panels(weight), None if bias is None else bias_in_panels(bias), len(weight)
        )

    def split(self, columns: int) -> tuple["PanelLinear", "PanelLinear"]:
        """The first `columns`, which are whole panels, and the others, on the same memory."""
        weight, first = self.weight, columns // COLUMNS
        biases = (None, None) if weight.bias is None else (weight.bias[:first], weight.bias[first:])
        return (
            PanelLinear._of(cpu.Panels(weight.panels[:first], biases[0], columns)),
            PanelLinear._of(cpu.Panels(weight.panels[first:], biases[1], weight.columns - columns)),
        )

    @classmethod
    def _of(cls, weight: cpu.Panels) -> "PanelLinear":
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.weight = weight
        return made

    def forward(
        self, x: torch.Tensor, form: str = "none", residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`[..., C]` -> `[..., N]`; form: `none` or `quick_gelu`. residual `[..., N]` is added last."""
        return cpu.matmul(x, self.weight, form, residual)


class PanelGated(nn.Module):  # type: ignore[misc]
    """Two linear layers whose columns lie beside each other in panels, so that one pass has both."""

    def __init__(self, gate: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        columns = gate.out_features
        bias = biases((gate, up))
        self.weight = cpu.Panels(
            in_panels(gate.weight.detach(), up.weight.detach()),
            None if bias is None else bias_in_panels(*bias.split(columns)),
            columns,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., N]`."""
        return cpu.matmul(x, self.weight, "gated")


class PackedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer whose weight lies as oneDNN wants it; several side by side are one."""

    def __init__(self, *parts: nn.Linear) -> None:
        super().__init__()
        weight = joined([part.weight.detach() for part in parts])
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = biases(parts)

    def forward(
        self, x: torch.Tensor, form: str = "none", residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As of `PanelLinear`."""
        made = self.product(x)
        if form == "quick_gelu":
            made = cpu.quick_gelu_(made)
        return made if residual is None else residual + made

    def product(self, x: torch.Tensor, then: str = "none", kind: str = "") -> torch.Tensor:
        """`[..., C]` -> `[..., N]`; `then` is done in the same pass: `none`, `swish` for SiLU, or `gelu`.

        kind: which gelu, by oneDNN's names.
        """
        pointwise = torch.ops.mkldnn._linear_pointwise
        if x.numel() == x.shape[-1]:
            both = pointwise(twice(x), self.packed, self.bias, then, [], kind)
            return both[:1].view(*x.shape[:-1], -1)
        return pointwise(x, self.packed, self.bias, then, [], kind)

    def times(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., N]`, each multiplied by `factor` `[..., N]` in the same pass."""
        multiplied = torch.ops.mkldnn._linear_pointwise.binary
        if x.numel() == x.shape[-1]:
            both = multiplied(twice(x), twice(factor), self.packed, self.bias, "mul")
            return both[:1].view_as(factor)
        return multiplied(x, factor, self.packed, self.bias, "mul")


class PackedGated(nn.Module):  # type: ignore[misc]
    """SiLU and the factor within the products that make them."""

    def __init__(self, gate: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.gate, self.up = PackedLinear(gate), PackedLinear(up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., N]`."""
        return self.up.times(x, self.gate.product(x, "swish"))


def biases(parts: tuple[nn.Linear, ...]) -> torch.Tensor | None:
    """The layers' biases side by side, zeros where one has none; None where none has any."""
    if all(part.bias is None for part in parts):
        return None
    found = [
        part.weight.new_zeros(part.out_features) if part.bias is None else part.bias
        for part in parts
    ]
    return torch.cat(found).detach()


def in_panels(*weights: torch.Tensor) -> torch.Tensor:
    """`[N, C]` each -> `[panels, words, 64, entries of a word]`, see `cpu_matmul.cpp`.

    Of two weights each has half the columns of every panel.
    """
    return _in_panels(weights, per_word=4 // weights[0].element_size())


def bias_in_panels(*given: torch.Tensor) -> torch.Tensor:
    """`[N]` each -> `[panels, 64]`, as the columns of their weights lie."""
    return _in_panels([bias[:, None] for bias in given], per_word=1).flatten(1)


def _in_panels(weights: Sequence[torch.Tensor], *, per_word: int) -> torch.Tensor:
    size, inner = weights[0].shape
    share, words = COLUMNS // len(weights), inner // per_word
    whole, rest = divmod(size, share)
    made = pages.zeros((whole + (rest > 0), words, COLUMNS, per_word), weights[0].dtype)
    for number, weight in enumerate(weights):
        columns = made[:, :, number * share : (number + 1) * share]
        full = weight[: whole * share].reshape(whole, share, words, per_word)
        columns[:whole] = full.transpose(1, 2)
        if rest:
            last = weight[whole * share :].reshape(rest, words, per_word)
            columns[whole, :, :rest] = last.transpose(0, 1)
    return made


def twice(x: torch.Tensor) -> torch.Tensor:
    """A single row `[..., C]` -> `[2, C]`.

    oneDNN adds a row's products in one order for any number of rows from two on, and in another for one
    alone where C is more than 1,024; the bits of a row must not tell how many others there were.
    """
    return x.reshape(1, -1).expand(2, -1).contiguous()
