"""Whole layers of one model, several in one call: `cpu_layer.cpp`.

Legend: B rows, Q left-padded length, S slots, L slot length, H K/V heads, D head size, N images, T their patches,
C hidden size.
"""

import ctypes
import threading
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch

from llava_batch.engine import pages
from llava_batch.engine.kernels.cpu import LayerNorm, Norm, Panels, refuse_other_turns
from llava_batch.engine.kernels.cpu_abi import LinearStruct, Shape, by_rows, call, pointer
from llava_batch.engine.passes import Rows


class _Layer(ctypes.Structure):
    """`Layer` of `cpu_layer.cpp`."""

    _fields_ = [
        ("hidden", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("norm_before", "norm_behind")),
        *((name, ctypes.c_double) for name in ("epsilon_before", "epsilon_behind")),
        *((name, LinearStruct) for name in ("qkv", "out", "gated", "down")),
        ("scaling", ctypes.c_double),
        ("window", ctypes.c_int64),
    ]


class _ClipLayer(ctypes.Structure):
    """`ClipLayer` of `cpu_layer.cpp`."""

    _fields_ = [
        ("hidden", ctypes.c_int64),
        *((f"{part}_before", ctypes.c_void_p) for part in ("weight", "bias")),
        *((f"{part}_behind", ctypes.c_void_p) for part in ("weight", "bias")),
        *((name, ctypes.c_double) for name in ("epsilon_before", "epsilon_behind")),
        *((name, LinearStruct) for name in ("qkv", "out", "up", "down")),
    ]


class Layer(NamedTuple):
    """What a decoder layer is made of; `gated` holds the gate and the factor beside each other.

    window: of its attention, or None.
    """

    before: Norm
    qkv: Panels
    out: Panels
    behind: Norm
    gated: Panels
    down: Panels
    num_heads: int
    scaling: float
    window: int | None

    @property
    def fits(self) -> bool:
        """Whether each part takes what the one before it gives, all in one dtype."""
        hidden = self.qkv.inner
        norms = (self.before.weight, self.behind.weight)
        return (
            all(norm.shape == (hidden,) for norm in norms)
            and of_one_dtype(norms, (self.qkv, self.out, self.gated, self.down))
            and hidden == self.out.columns == self.gated.inner == self.down.columns
            and self.gated.columns == self.down.inner
        )

    @property
    def kind(self) -> tuple[torch.dtype, int, int]:
        """What layers that are computed in one call have in common: dtype, C and query heads."""
        return self.qkv.panels.dtype, self.qkv.inner, self.num_heads

    @property
    def num_bytes(self) -> int:
        """Of its weights."""
        products = (self.qkv, self.out, self.gated, self.down)
        return sum(part.panels.nbytes for part in products)

    @property
    def entries(self) -> int:
        """What it keeps of a place meanwhile."""
        return self.qkv.inner + self.out.inner + max(self.qkv.columns, self.gated.columns)

    def struct(self) -> _Layer:
        """As the kernels take it; good as long as the layer is."""
        products = (self.qkv, self.out, self.gated, self.down)
        return _Layer(
            self.qkv.inner,
            *(norm.weight.data_ptr() for norm in (self.before, self.behind)),
            *(norm.epsilon for norm in (self.before, self.behind)),
            *(part.struct() for part in products),
            self.scaling,
            self.window or 0,
        )


class ClipLayer(NamedTuple):
    """What a layer of CLIP's tower is made of; `up` ends in quick-GELU."""

    before: LayerNorm
    qkv: Panels
    out: Panels
    behind: LayerNorm
    up: Panels
    down: Panels
    num_heads: int
    scaling: float

    @property
    def fits(self) -> bool:
        """Whether each part takes what the one before it gives, all in one dtype."""
        hidden = self.qkv.inner
        norms = (*self.before[:2], *self.behind[:2])
        return (
            all(norm.shape == (hidden,) for norm in norms)
            and of_one_dtype(norms, (self.qkv, self.out, self.up, self.down))
            and self.qkv.columns == 3 * hidden == 3 * self.out.inner
            and hidden == self.out.columns == self.up.inner == self.down.columns
            and self.up.columns == self.down.inner
        )

    @property
    def kind(self) -> tuple[torch.dtype, int, int, float]:
        """What layers that are computed in one call have in common: dtype, C, heads and scaling."""
        return self.qkv.panels.dtype, self.qkv.inner, self.num_heads, self.scaling

    @property
    def num_bytes(self) -> int:
        """Of its weights."""
        return sum(part.panels.nbytes for part in (self.qkv, self.out, self.up, self.down))

    @property
    def entries(self) -> int:
        """What it keeps of a patch meanwhile."""
        return 2 * self.qkv.inner + max(self.qkv.columns, self.up.columns)

    def struct(self) -> _ClipLayer:
        """As the kernels take it; good as long as the layer is."""
        return _ClipLayer(
            self.qkv.inner,
            *(part.data_ptr() for norm in (self.before, self.behind) for part in norm[:2]),
            *(norm.epsilon for norm in (self.before, self.behind)),
            *(part.struct() for part in (self.qkv, self.out, self.up, self.down)),
        )


def of_one_dtype(vectors: Iterable[torch.Tensor], products: tuple[Panels, ...]) -> bool:
    """Whether all that the kernels read as one dtype is of it; vectors are to be contiguous besides."""
    vectors = [*vectors, *(part.bias for part in products if part.bias is not None)]
    dtypes = {tensor.dtype for tensor in (*vectors, *(part.panels for part in products))}
    return len(dtypes) == 1 and all(vector.is_contiguous() for vector in vectors)


_of_thread = threading.local()


def _memory(entries: int, dtype: torch.dtype) -> torch.Tensor:
    """Of the calling thread, of any contents; as large as the largest pass, and kept for the next.

    RuntimeError where there is not so much, as of any tensor.
    """
    kept: torch.Tensor | None = getattr(_of_thread, "memory", None)
    if kept is None or kept.nbytes < entries * dtype.itemsize:
        kept = _of_thread.memory = None  # let go first: the two need not be there at once
        kept = _of_thread.memory = pages.zeros((entries * dtype.itemsize,), torch.uint8)
    return kept


Slots = tuple[torch.Tensor, torch.Tensor]
"""A layer's keys and values, `[S, H, L, D]` each."""


MOST_BYTES = 256 * 1024**2
"""Of weights in one call, unless a single layer has more: no signal is heard before a call is over, and with
so many a call's own cost is nothing beside reading them."""


class Layers:
    """Decoder layers one behind the other, of one model: computed in one call.

    The same bits as of their parts called one by one.
    """

    def __init__(self, layers: list[Layer]) -> None:
        """At least one, all of one kind."""
        self.layers = layers
        self._structs = (_Layer * len(layers))(*(layer.struct() for layer in layers))

    def __call__(
        self,
        x: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        slots: list[Slots],
        rows: Rows,
        *,
        room: int,
    ) -> torch.Tensor:
        """`[B, Q, C]` -> `[B, Q, C]`; each layer's new keys and values are in its slots afterwards.

        turns: cosine and sine, `[B, Q, D]` each. slots: a pair for each layer, all of the same strides. room: tokens
        that a row has room for; a window of as many is none.
        """
        first, key = self.layers[0], slots[0][0]
        first.qkv.check(x)
        x = x.contiguous()
        cosine, sine = (turn.contiguous() for turn in turns)
        refuse_other_turns(cosine, key)
        out = torch.empty_like(x)
        batch, length, _ = x.shape
        shape = Shape(
            *(batch, first.num_heads, key.shape[1], key.shape[3], length),
            *(0, 0, 0, *key.stride()[:3], 0, 0, 0),
            *(1, room, 0.0),
        )
        memory = _memory(batch * length * max(layer.entries for layer in self.layers), x.dtype)
        addresses = ctypes.c_void_p * len(self.layers)
        keys, values = (addresses(*(s[n].data_ptr() for s in slots)) for n in (0, 1))
        call(
            "layers",
            x,
            *(self._structs, ctypes.c_int64(len(self.layers)), ctypes.byref(shape)),
            *map(pointer, (x, cosine, sine)),
            *(keys, values, pointer(out), pointer(memory), by_rows(rows)),
        )
        return out


class ClipLayers:
    """Layers of CLIP's tower one behind the other: computed in one call.

    The same bits as of their parts called one by one.
    """

    def __init__(self, layers: list[ClipLayer]) -> None:
        """At least one, all of one kind."""
        self.layers = layers
        self._structs = (_ClipLayer * len(layers))(*(layer.struct() for layer in layers))
        self._entries = max(layer.entries for layer in layers)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, T, C]` -> `[N, T, C]`: each image's patches attend to one another."""
        first = self.layers[0]
        first.qkv.check(x)
        x = x.contiguous()
        out = torch.empty_like(x)
        batch, length, hidden = x.shape
        heads = first.num_heads
        shape = Shape(batch, heads, heads, hidden // heads, length, scaling=first.scaling)
        memory = _memory(batch * length * self._entries, x.dtype)
        every = Rows(slots=tuple(range(batch)), past=(0,) * batch, new=(length,) * batch)
        call(
            "clip_layers",
            x,
            *(self._structs, ctypes.c_int64(len(self.layers)), ctypes.byref(shape)),
            *(*map(pointer, (x, out, memory)), by_rows(every)),
        )
        return out


Whole = TypeVar("Whole", Layer, ClipLayer)


def in_calls(layers: list[Whole]) -> list[list[Whole]]:
    """Layers as they go together into calls."""
    calls: list[list[Whole]] = []
    for layer in layers:
        before = calls[-1] if calls else []
        num_bytes = sum(other.num_bytes for other in before) + layer.num_bytes
        if before and before[0].kind == layer.kind and num_bytes <= MOST_BYTES:
            before.append(layer)
        else:
            calls.append([layer])
    return calls
