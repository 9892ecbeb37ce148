"""Compiles and calls the fused CPU kernels of `cpu.cpp`, `cpu_matmul.cpp`, `cpu_layer.cpp` and `cpu_draw.cpp`.

The kernels are built once per machine with the system's C++ compiler and kept in the user's cache
folder. Where there is no AVX-512 `why_not` says so, where there is no compiler or an old one
`why_not_built`, and the engine runs on torch's own kernels.
Legend: B rows, Q left-padded length, Hq and H query and K/V heads, D head size.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from functools import cache as remember
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llava_batch.engine import draw as drawing
from llava_batch.engine.kernels import plain
from llava_batch.engine.passes import Rows

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in (
        *("cpu_kernels.h", "cpu_vectors.h"),
        *("cpu.cpp", "cpu_matmul.cpp", "cpu_layer.cpp", "cpu_draw.cpp"),
    )
)
FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-std=c++17",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-w",
)
COMPILE_TIMEOUT_S = 300
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
NEEDS = {
    torch.float32: ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    torch.bfloat16: ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"),
}


class _Shape(ctypes.Structure):
    """`Attention` of `cpu_kernels.h`."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "heads", "kv_heads", "dim", "length"),
            *("q_batch", "q_head", "q_token"),
            *("k_slot", "k_head", "k_token"),
            *("o_batch", "o_head", "o_token"),
            *("causal", "window"),
        )
    ] + [("scaling", ctypes.c_double)]


class _Rows(ctypes.Structure):
    """`Rows` of `cpu_kernels.h`."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("slots", "past", "count", "widths", "origins", "shared")
    ]


class _Product(ctypes.Structure):
    """`Product` of `cpu_kernels.h`."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "inner", "columns", "form")]


class _Linear(ctypes.Structure):
    """`Linear` of `cpu_layer.cpp`."""

    _fields_ = [
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
    ]


class _Layer(ctypes.Structure):
    """`Layer` of `cpu_layer.cpp`."""

    _fields_ = [
        ("hidden", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("norm_before", "norm_behind")),
        *((name, ctypes.c_double) for name in ("epsilon_before", "epsilon_behind")),
        *((name, _Linear) for name in ("qkv", "out", "gated", "down")),
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
        *((name, _Linear) for name in ("qkv", "out", "up", "down")),
    ]


FORMS = {"none": 0, "quick_gelu": 1, "gated": 2}
"""What `matmul` does with the sums: nothing, x * sigmoid(1.702 x), or SiLU of the one half times the other."""


def why_not(dtype: torch.dtype) -> str | None:
    """What this processor lacks for one of NEEDS, or None."""
    missing = [flag for flag in NEEDS[dtype] if flag not in cpu_flags()]
    return f"the processor lacks {', '.join(missing)}" if missing else None


@remember
def why_not_built(dtype: torch.dtype) -> str | None:
    """Why the kernels for one of NEEDS cannot be built on this machine; None once they are."""
    try:
        built = library()
    except (OSError, subprocess.SubprocessError) as error:
        return f"the kernels could not be compiled: {error}"
    if not hasattr(built, f"prefill_{NAMES[dtype]}"):
        return f"the compiler is too old for {NAMES[dtype]}: {compiler()}; install g++ 10 or newer"
    return None


@remember
def cpu_flags() -> frozenset[str]:
    """What the processor can do, as Linux tells it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(found.partition(":")[2].split())


@remember
def library() -> ctypes.CDLL:
    """The compiled kernels, built if they are not there yet.

    The file's name holds a digest of the source, the flags and the processor, and one of the compiler,
    so that nothing stale is loaded after a change of any, or on another machine with the same home;
    where there is no compiler, what one has built for such a processor is taken. Needs torch to be
    loaded first: both then share one OpenMP runtime.
    """
    name = f"native-{digest(*(s.read_text() for s in SOURCES), *FLAGS, *sorted(cpu_flags()))}"
    path = compiler()
    if path is None:
        built = sorted(cache_folder().glob(f"{name}-*.so"), key=os.path.getmtime)
        if not built:
            raise OSError("no C++ compiler is installed (g++ or clang++)")
        return ctypes.CDLL(str(built[-1]))
    target = cache_folder() / f"{name}-{digest(path, version(path))}.so"
    if not target.exists():
        build(path, target)
    return ctypes.CDLL(str(target))


def compiler() -> str | None:
    """$CXX, else g++ or clang++, where one is installed."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def version(path: str) -> str:
    """What a compiler says that it is."""
    command = [path, "--version"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return ran.stdout


def digest(*parts: str) -> str:
    """Sixteen hexadecimal digits that stand for these texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/llava_batch, or ~/.cache/llava_batch."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llava_batch"


def build(compiler: str, target: Path) -> None:
    """Compile to a temporary name and rename: several workers may do so at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    files = [str(source) for source in SOURCES if source.suffix == ".cpp"]
    command = [compiler, *FLAGS, *files, "-o", temporary]
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S
        )
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _call(name: str, tensor: torch.Tensor, *arguments: object) -> None:
    getattr(library(), f"{name}_{NAMES[tensor.dtype]}")(*arguments)


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _pointer_or_null(tensor: torch.Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else _pointer(tensor)


def _rows(rows: Rows) -> Any:
    """By reference; good as long as `rows` is."""
    address, stride = rows.array.ctypes.data, rows.array.strides[0]
    return ctypes.byref(_Rows(*(address + row * stride for row in range(len(rows.array)))))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    *,
    scaling: float,
    window: int | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """query `[B, Q, Hq, D]`, key and value `[S, H, L, D]` of any strides -> `[B, Q, Hq, D]`.

    The last dimension must be contiguous, key and value of the same strides, and all of one dtype.
    Rows of padding are zero.
    """
    batch, length, heads, dim = query.shape
    decode = length == 1 and causal
    make = torch.empty if min(rows.new) == length else torch.zeros
    out = make(query.shape, dtype=query.dtype)
    shape = _Shape(
        *(batch, heads, key.shape[1], dim, length),
        *(query.stride(0), query.stride(2), query.stride(1)),
        *key.stride()[:3],
        *(out.stride(0), out.stride(2), out.stride(1)),
        *(int(causal), window or 0, scaling),
    )
    pointers = (_pointer(query), _pointer(key), _pointer(value), _pointer(out))
    name = "decode" if decode else "prefill"
    _call(name, query, ctypes.byref(shape), *pointers, _rows(rows))
    return out


def unfused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """`attend` for a layer that is not fused: query `[B, Hq, Q, D]`, of any D."""
    if query.shape[-1] % 16 == 0:
        return attend(query.transpose(1, 2), key, value, rows, scaling=scaling, window=window)
    form = plain.decode_attention if rows.is_decode else plain.prefill_attention
    return form(query, key, value, rows, scaling, window)


def rope_store(
    qkv: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    num_heads: int,
) -> None:
    """Rotate the queries of `[B, Q, (Hq + 2 H) D]` in place; write its K/V to slots `[S, H, L, D]`.

    num_heads: Hq, which may be 0.
    """
    _refuse_other_turns(cosine, key)
    batch, length, _ = qkv.shape
    shape = _Shape(batch, num_heads, key.shape[1], key.shape[3], length, 0, 0, 0, *key.stride()[:3])
    tensors = (qkv, cosine, sine, key, value)
    _call("rope_store", qkv, ctypes.byref(shape), *map(_pointer, tensors), _rows(rows))


def _refuse_other_turns(cosine: torch.Tensor, key: torch.Tensor) -> None:
    if cosine.shape[-1] != key.shape[3]:
        raise ValueError(
            f"a rotation of {cosine.shape[-1]} entries is not a head's, {key.shape[3]}"
        )


def rotate(query: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, rows: Rows) -> None:
    """Rotate `[B, Q, Hq D]` in place by `[B, Q, D]`."""
    batch, length, width = query.shape
    dim = cosine.shape[-1]
    shape = _Shape(batch, width // dim, 0, dim, length)
    nowhere = ctypes.c_void_p()
    pointers = (_pointer(query), _pointer(cosine), _pointer(sine), nowhere, nowhere)
    _call("rope_store", query, ctypes.byref(shape), *pointers, _rows(rows))


def matmul(
    x: torch.Tensor, weight: "Panels", form: str = "none", residual: torch.Tensor | None = None
) -> torch.Tensor:
    """`[..., C]` by a weight in panels -> `[..., columns]`.

    form: one of FORMS. residual: `[..., columns]`, added last.
    """
    weight.check(x)
    out = torch.empty((*x.shape[:-1], weight.columns), dtype=x.dtype)
    tensors = [x.contiguous(), weight.panels, weight.bias]
    if residual is not None:
        if residual.shape != out.shape or residual.dtype != x.dtype:
            raise ValueError(f"a residual of {tuple(residual.shape)} beside {tuple(out.shape)}")
        residual = residual.contiguous()
    shape = _Product(x.numel() // x.shape[-1], x.shape[-1], weight.columns, FORMS[form])
    pointers = (_pointer_or_null(tensor) for tensor in (*tensors, residual, out))
    _call("product", x, ctypes.byref(shape), *pointers)
    return out


class Panels(NamedTuple):
    """A linear layer's weight as `matmul` takes it.

    panels: `[panels, words, 64, entries of a word]`, see `cpu_matmul.cpp`. bias: `[panels, 64]`, with zeros behind
    its end, or None. columns: of the result.
    """

    panels: torch.Tensor
    bias: torch.Tensor | None
    columns: int

    @property
    def inner(self) -> int:
        """C."""
        return int(self.panels.shape[1] * self.panels.shape[3])

    def check(self, x: torch.Tensor) -> None:
        """Refuse what is not to be multiplied by it."""
        if x.dtype != self.panels.dtype or x.shape[-1] != self.inner:
            raise ValueError(
                f"{x.dtype} {tuple(x.shape)} by a weight of {self.panels.dtype} with {self.inner} inner entries"
            )

    def struct(self) -> _Linear:
        """As the kernels take it; good as long as it is."""
        bias = None if self.bias is None else self.bias.data_ptr()
        return _Linear(self.panels.data_ptr(), bias, self.columns)


class Norm(NamedTuple):
    """An RMSNorm's weight `[C]` and epsilon."""

    weight: torch.Tensor
    epsilon: float


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
            all(n.shape == (hidden,) and n.dtype == self.qkv.panels.dtype for n in norms)
            and all(n.is_contiguous() for n in norms)
            and hidden == self.out.columns == self.gated.inner == self.down.columns
            and self.gated.columns == self.down.inner
        )

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


class LayerNorm(NamedTuple):
    """A LayerNorm's weight and bias, `[C]` each, and epsilon."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float


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
            all(n.shape == (hidden,) and n.dtype == self.qkv.panels.dtype for n in norms)
            and all(n.is_contiguous() for n in norms)
            and self.qkv.columns == 3 * hidden == 3 * self.out.inner
            and hidden == self.out.columns == self.up.inner == self.down.columns
            and self.up.columns == self.down.inner
        )

    def struct(self) -> _ClipLayer:
        """As the kernels take it; good as long as the layer is."""
        return _ClipLayer(
            self.qkv.inner,
            *(part.data_ptr() for norm in (self.before, self.behind) for part in norm[:2]),
            *(norm.epsilon for norm in (self.before, self.behind)),
            *(part.struct() for part in (self.qkv, self.out, self.up, self.down)),
        )


_of_thread = threading.local()


def _memory(entries: int, dtype: torch.dtype) -> torch.Tensor:
    """Of the calling thread, of any contents; as large as the largest pass, and kept for the next.

    RuntimeError where there is not so much, as of any tensor.
    """
    kept: torch.Tensor | None = getattr(_of_thread, "memory", None)
    if kept is None or kept.nbytes < entries * dtype.itemsize:
        kept = _of_thread.memory = None  # let go first: the two need not be there at once
        kept = _of_thread.memory = torch.empty(entries * dtype.itemsize, dtype=torch.uint8)
    return kept


Slots = tuple[torch.Tensor, torch.Tensor]
"""A layer's keys and values, `[S, H, L, D]` each."""


class Layers:
    """Decoder layers one behind the other, of one model: computed in one call.

    The same bits as of their parts called one by one.
    """

    def __init__(self, layers: list[Layer]) -> None:
        """At least one."""
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
        _refuse_other_turns(cosine, key)
        out = torch.empty_like(x)
        batch, length, _ = x.shape
        shape = _Shape(
            *(batch, first.num_heads, key.shape[1], key.shape[3], length),
            *(0, 0, 0, *key.stride()[:3], 0, 0, 0),
            *(1, room, 0.0),
        )
        memory = _memory(batch * length * max(layer.entries for layer in self.layers), x.dtype)
        addresses = ctypes.c_void_p * len(self.layers)
        keys, values = (addresses(*(s[n].data_ptr() for s in slots)) for n in (0, 1))
        _call(
            "layers",
            x,
            *(self._structs, ctypes.c_int64(len(self.layers)), ctypes.byref(shape)),
            *map(_pointer, (x, cosine, sine)),
            *(keys, values, _pointer(out), _pointer(memory), _rows(rows)),
        )
        return out


def clip_layer(layer: ClipLayer, x: torch.Tensor) -> torch.Tensor:
    """`[N, T, C]` -> `[N, T, C]`: each image's patches attend to one another.

    The same bits as of its parts called one by one.
    """
    layer.qkv.check(x)
    x = x.contiguous()
    out = torch.empty_like(x)
    batch, length, hidden = x.shape
    heads = layer.num_heads
    shape = _Shape(batch, heads, heads, hidden // heads, length, scaling=layer.scaling)
    entries = 2 * hidden + max(layer.qkv.columns, layer.up.columns)
    pointers = map(_pointer, (x, out, _memory(batch * length * entries, x.dtype)))
    every = Rows(slots=tuple(range(batch)), past=(0,) * batch, new=(length,) * batch)
    _call(
        "clip_layer", x, ctypes.byref(layer.struct()), ctypes.byref(shape), *pointers, _rows(every)
    )
    return out


def layer_norm(x: torch.Tensor, norm: LayerNorm) -> torch.Tensor:
    """torch's LayerNorm over the last dimension of a contiguous tensor."""
    out = torch.empty_like(x)
    dim = x.shape[-1]
    sizes = (ctypes.c_int64(x.numel() // dim), ctypes.c_int64(dim), ctypes.c_double(norm.epsilon))
    _call("layer_norm", x, *map(_pointer, (x, norm.weight, norm.bias, out)), *sizes)
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """transformers' RMSNorm over the last dimension of a contiguous tensor."""
    out = torch.empty_like(x)
    dim = x.shape[-1]
    sizes = (ctypes.c_int64(x.numel() // dim), ctypes.c_int64(dim), ctypes.c_double(epsilon))
    _call("rms_norm", x, _pointer(x), _pointer(weight), _pointer(out), *sizes)
    return out


def quick_gelu_(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), in place."""
    _call("quick_gelu", x, _pointer(x), ctypes.c_int64(x.numel()))
    return x


def best_token(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[B, V]` -> the first highest entry of each row, and its log-probability in float32."""
    rows, size = logits.shape
    best = torch.empty(rows, dtype=torch.int64)
    value, log_sum = torch.empty(rows), torch.empty(rows)
    sizes = (ctypes.c_int64(rows), ctypes.c_int64(size))
    outs = (_pointer(best), _pointer(value), _pointer(log_sum))
    _call("best_token", logits, _pointer(logits), *sizes, *outs)
    return best, value - log_sum


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    point: torch.Tensor,
) -> torch.Tensor:
    """`drawing.draw` of float32 `[R, V]`: the same tokens, and the row in order only where they are not decided
    without."""
    rules = (temperature, top_k, top_p, point)
    if logits.dtype != torch.float32 or any(rule.dtype != torch.float64 for rule in rules):
        raise ValueError(f"logits are {logits.dtype}, must be float32, and the rules float64")
    tokens = torch.full((len(logits),), -1, dtype=torch.int64)
    (few,) = torch.nonzero(top_k == 0, as_tuple=True)
    if len(few) == len(logits):
        tokens = _drawn(logits, temperature, top_p, point)
    elif len(few):
        tokens[few] = _drawn(logits[few], temperature[few], top_p[few], point[few])
    (left,) = torch.nonzero(tokens < 0, as_tuple=True)
    if len(left):
        tokens[left] = drawing.draw(logits[left], *(rule[left] for rule in rules))
    return tokens


def _drawn(logits: torch.Tensor, *rules: torch.Tensor) -> torch.Tensor:
    """The tokens `[R]` by temperature, top_p and point; -1 where they are not decided."""
    rows, size = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    sizes = (ctypes.c_int64(rows), ctypes.c_int64(size))
    logits, *rest = (x.contiguous() for x in (logits, *rules))
    library().draw(_pointer(logits), *sizes, *map(_pointer, rest), _pointer(tokens))
    return tokens
