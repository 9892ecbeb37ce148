"""A card that is not there: the engine's device path on fake CUDA tensors, every operation watched.

A fake tensor has a shape, a dtype and a device, and no numbers. All of a step runs as it would on a card:
the engine's own code, transformers' layers, the kernels' arguments; what would be wrong with it there and
answers nothing here raises a `Fault` with the line it comes from:

- the host waits for the device (`item`, `bool`, `nonzero`, a shape that depends on data, `synchronize`),
  but for where a flight lands;
- tensors of two devices meet in one operation (a CPU tensor as an index too, which torch copies silently);
- a copy to the device that the host waits for: not `non_blocking`, or not from pinned memory; a copy to
  the host anywhere but in `to_host`, or one that is read before its event has come to pass;
- a captured step that takes anything from the host, or that a replay would not repeat: other operations,
  shapes or numbers than at its capture, or the same on memory that has moved.

It does not show which kernel a card chooses, alignment, the order of streams, time, or a single number.
"""

import ctypes
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._subclasses.fake_tensor as fake_tensors
from tiny_llava import EOS, IMAGE, VOCAB
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, LlavaConfig
from transformers import modeling_flash_attention_utils as transformers_flash
from transformers.initialization import no_init_weights

from llava_batch.engine import Engine, device, readback
from llava_batch.engine.forward import cuda_graphs
from llava_batch.engine.forward.cuda_graphs import Graphs
from llava_batch.engine.kernels import cpu_build, cuda, self_test

aten = torch.ops.aten
HERE = Path(__file__).parent
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);
"""
"""torch built for CPU has no guard for CUDA devices, which copies between fake devices ask for."""
CAPABILITY, TOTAL_BYTES = (9, 0), 80 << 30


class Fault(AssertionError):
    """What would be wrong on a card. No RuntimeError: the engine takes those for the card's own."""


@cache
def why_not() -> str | None:
    """Why there can be no fake card on this machine, or None; it is then ready."""
    if torch.version.cuda is not None:
        return None
    compiler = cpu_build.compiler()
    if compiler is None:
        return "no C++ compiler is installed, and this torch has no guard for CUDA devices"
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(GUARD)
        command = [compiler, "-std=c++20", "-shared", "-fPIC", "-w", f"-I{root / 'include'}"]
        command += [str(source), "-o", str(built), f"-L{root / 'lib'}", "-lc10"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if ran.returncode:
            return f"the guard for CUDA devices does not compile: {ran.stderr.strip()[:200]}"
        ctypes.CDLL(str(built))
    return None


Step = tuple[str, tuple[Any, ...]]
"""An operation and what it was given: of tensors their form, and where they lie if they were there before."""


@dataclass(eq=False)
class Trace:
    """What one run of a captured step did."""

    steps: list[Step] = field(default_factory=list)
    made: set[int] = field(default_factory=set)
    alive: list[Any] = field(default_factory=list)
    """All storages that were met, so that no address is used twice meanwhile."""

    def note(self, func: Any, given: list[Any], made: list[torch.Tensor]) -> None:
        """One operation more."""
        self.steps.append((str(func), tuple(map(self._told, given))))
        for tensor in made:
            storage = tensor.untyped_storage()
            if all(
                storage._cdata != one.untyped_storage()._cdata for one in given if is_tensor(one)
            ):
                self.made.add(storage._cdata)
            self.alive.append(storage)

    def _told(self, one: Any) -> Any:
        if not is_tensor(one):
            return str(one)
        storage = one.untyped_storage()
        self.alive.append(storage)
        form = (
            tuple(one.shape),
            one.stride(),
            one.storage_offset(),
            str(one.dtype),
            str(one.device),
        )
        own = storage._cdata in self.made or one.device.type == "cpu"
        return form if own else (*form, storage._cdata)


class Watch(TorchDispatchMode):
    """Sees every operation on its way to the fake device."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "start"
        """start: copies may wait. step: none may. landing: results go to the host. capture."""
        self.trace: Trace | None = None
        self.num_operations = 0
        self.copied = 0
        """Copies to the device in a step."""

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A phase and back."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        self.num_operations += 1
        given = tree_leaves((args, kwargs))
        self._check(func, args, kwargs, [one for one in given if is_tensor(one)])
        pinned = kwargs.pop("pin_memory", False) or func is aten._pin_memory.default
        if func is aten._pin_memory.default:
            func = aten.clone.default
        try:
            found = func(*args, **kwargs)
        except UNKNOWN as error:  # of a library's own operation, which says so only now
            raise Fault(f"the host waits for the device: {func} {where()}") from error
        if pinned:
            found.is_in_pinned_memory = True
        if self.trace is not None:
            made = [one for one in tree_leaves(found) if is_tensor(one)]
            self.trace.note(func, given, made)
        return found

    def _check(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> None:
        if self.phase != "start" and waits(func, args, tensors):
            raise Fault(f"the host waits for the device: {func} {where()}")
        if func in (aten._to_copy.default, aten.copy_.default):
            self._check_copy(func, args, kwargs)
        elif func is not aten.lift_fresh.default:
            check_devices(func, tensors)

    def _check_copy(self, func: Any, args: Any, kwargs: Any) -> None:
        if func is aten.copy_.default:
            (target, source), free = args[:2], bool(kwargs.get("non_blocking", args[2:] == (True,)))
            to = target.device.type
        else:
            target, source, free = None, args[0], kwargs.get("non_blocking", False)
            to = torch.device(kwargs.get("device") or source.device).type
        way = (source.device.type, to)
        if self.phase == "start" or way[0] == way[1]:
            return
        if self.phase == "capture":
            raise Fault(f"a captured step copies from {way[0]} to {way[1]} {where()}")
        if way[1] == "cpu" and self.phase != "landing":
            raise Fault(f"a step copies to the host {where()}")
        if not free:
            raise Fault(f"the host waits for a copy from {way[0]} to {way[1]} {where()}")
        host = source if way[0] == "cpu" else target
        if host is not None and not getattr(host, "is_in_pinned_memory", False):
            raise Fault(f"a copy from {way[0]} to {way[1]} beside pinned memory {where()}")
        self.copied += way[1] == "cuda"


def is_tensor(one: Any) -> bool:
    """Whether it is one; lists and numbers are given to operations too."""
    return isinstance(one, torch.Tensor)


UNKNOWN = (
    fake_tensors.DataDependentOutputException,
    fake_tensors.DynamicOutputShapeException,
)
"""What fake tensors raise where a number would have to be known."""
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
            aten._index_put_impl_.default)  # fmt: skip


def waits(func: Any, args: Any, tensors: list[torch.Tensor]) -> bool:
    """Whether an operation's result or its shape is in the device's numbers."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return False
    if func in INDEXING:
        masks = (torch.bool, torch.uint8)
        return any(index is not None and index.dtype in masks for index in args[1])
    return bool(WAITING & set(func.tags))


def check_devices(func: Any, tensors: list[torch.Tensor]) -> None:
    """Raise where tensors of two devices meet; a single number of the host goes along with the call."""
    placed = tensors
    if func not in INDEXING:
        placed = [tensor for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"]
    devices = sorted({tensor.device.type for tensor in placed})
    if len(devices) > 1:
        raise Fault(f"tensors of {' and '.join(devices)} meet in {func} {where()}")


def where() -> str:
    """The innermost line that is neither torch's nor this file's."""
    frame: Any = sys._getframe()
    root = str(Path(torch.__file__).parent)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not name.startswith(root):
            return f"at {Path(name).parent.name}/{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class Event:
    """torch.cuda.Event: what was sent before it is there once it has come to pass."""

    def __init__(self, card: "Card", blocking: bool = False) -> None:
        self.card, self.blocking, self.sent = card, blocking, 0

    def record(self) -> None:
        self.sent = self.card.sent

    def synchronize(self) -> None:
        if not self.blocking:
            raise Fault(f"waiting for an event costs a core {where()}")
        if self.card.watch.phase == "capture":
            raise Fault(f"a captured step waits for an event {where()}")
        self.card.arrived = max(self.card.arrived, self.sent)


@dataclass(eq=False)
class Arriving:
    """A tensor on its way to the host; its numbers are drawn."""

    card: "Card"
    number: int
    like: torch.Tensor

    def tolist(self) -> list[Any]:
        if self.card.arrived < self.number:
            raise Fault(f"results are read before they have arrived {where()}")
        if self.like.dtype.is_floating_point:
            return [-1.0] * len(self.like)
        return [self.card.say() for _ in range(len(self.like))]


class Stream:
    """torch.cuda.Stream, of which nothing is asked but that it can be waited for."""

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


class Graph:
    """torch.cuda.CUDAGraph; a replay runs the step again and holds it against the capture."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.again: Callable[[], Any] = lambda: None
        self.num_replays = 0

    def replay(self) -> None:
        watch, again = Card.watch_at_work(), Trace()
        watch.trace = again
        try:
            with watch.during("capture"):
                self.again()
        finally:
            watch.trace = None
        self.num_replays += 1
        for number, (then, now) in enumerate(zip(self.trace.steps, again.steps, strict=False)):
            if then != now:
                raise Fault(
                    f"a replay would not do what the step wants: operation {number} was {then}, is {now}"
                )
        if len(self.trace.steps) != len(again.steps):
            raise Fault(f"a replay of {len(self.trace.steps)} operations for {len(again.steps)}")


class Card:
    """The fake device of one test: its stand-ins, its watch, and engines on it."""

    current: "Card | None" = None
    patch: pytest.MonkeyPatch

    def __init__(self) -> None:
        self.watch = Watch()
        self.mode = fake_tensors.FakeTensorMode(allow_non_fake_inputs=True)
        self.sent = self.arrived = 0
        self.rng = np.random.default_rng(0)
        self.graphs: list[Graph] = []
        self.seen: set[str] = set()
        """Names of the attention functions that were called."""

    @contextmanager
    def at_work(self, monkeypatch: pytest.MonkeyPatch) -> Iterator["Card"]:
        """All that is done until the block ends is done on this card."""
        self.patch = monkeypatch
        # Else a tensor of one number remembers it.
        monkeypatch.setattr(fake_tensors, "CONSTANT_NUMEL_LIMIT", 0)
        self._stand_in_for_cuda()
        self._stand_in_for_flash()
        self._stand_in_for_the_engine()
        Card.current = self
        try:
            with self.mode, self.watch:
                yield self
        finally:
            Card.current = None

    @classmethod
    def watch_at_work(cls) -> Watch:
        assert cls.current is not None
        return cls.current.watch

    def say(self) -> int:
        """A token: one in twenty ends an answer."""
        return EOS if self.rng.random() < 0.05 else int(self.rng.integers(3, VOCAB))

    def _stand_in_for_cuda(self) -> None:
        stand_ins = {
            "get_device_capability": lambda *_: CAPABILITY,
            "get_device_name": lambda *_: "a fake card",
            "mem_get_info": lambda *_: (TOTAL_BYTES - (1 << 30), TOTAL_BYTES),
            "memory_reserved": lambda *_: 0,
            "memory_allocated": lambda *_: 0,
            "synchronize": self._synchronize,
            "Event": partial(Event, self),
            "Stream": Stream,
            "current_stream": Stream,
            "stream": lambda _: ExitStack(),
            "graph_pool_handle": object,
            "CUDAGraph": self._new_graph,
            "graph": self._capturing,
        }
        for name, stand_in in stand_ins.items():
            self.patch.setattr(torch.cuda, name, stand_in)

    def _synchronize(self, *_: Any) -> None:
        if self.watch.phase != "start":
            raise Fault(f"the host waits for the device: synchronize {where()}")

    def _new_graph(self) -> Graph:
        self.graphs.append(Graph())
        return self.graphs[-1]

    @contextmanager
    def _capturing(self, graph: Graph, **_: Any) -> Iterator[None]:
        self.watch.trace = graph.trace
        try:
            with self.watch.during("capture"):
                yield
        finally:
            self.watch.trace = None

    def _stand_in_for_flash(self) -> None:
        flash = types.ModuleType("flash_attn")
        bert = types.ModuleType("flash_attn.bert_padding")
        names = ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache")
        for name in names:
            setattr(flash, name, partial(_called, self.seen, name))
        for name in ("index_first_axis", "pad_input", "unpad_input"):
            setattr(bert, name, _not_to_be_called)
        self.patch.setitem(sys.modules, "flash_attn", flash)
        self.patch.setitem(sys.modules, "flash_attn.bert_padding", bert)
        self.patch.setattr(transformers_flash, "is_flash_attn_2_available", lambda: True)

    def _stand_in_for_the_engine(self) -> None:
        known = cuda.why_not
        self.patch.setattr(cuda, "why_not", lambda name: None if name == "flash" else known(name))
        # Without numbers there is nothing to hold a kernel's answers against.
        self.patch.setattr(self_test, "why_not", lambda *_, **__: None)
        # Nothing is allocated in the first runs of a library's kernel, for no kernel runs.
        self.patch.setattr(cuda_graphs, "NUM_WARM_UPS", 1)
        # What is made in inference mode has no version, which fake tensors ask for.
        for owner, name in ((Engine, "step"), (Graphs, "warm")):
            whole = getattr(owner, name).__wrapped__
            self.patch.setattr(owner, name, torch.no_grad()(whole))
        capture = Graphs._capture

        def capturing(graphs: Graphs, key: Any) -> Any:
            captured = capture(graphs, key)
            captured.graph.again = partial(graphs._run, key)
            return captured

        self.patch.setattr(readback, "to_host", self.to_host(device.to_host))
        self.patch.setattr(Graphs, "_capture", capturing)

    def to_host(self, send: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
        """`send`, which sends a tensor to the host, with drawn numbers for what arrives there."""

        def sending(tensor: torch.Tensor) -> Arriving:
            with self.watch.during("landing"):
                host = send(tensor)
            self.sent += 1
            return Arriving(self, self.sent, host)

        return sending

    def engine(
        self, vision: Any, text: Any, dtype: torch.dtype = torch.bfloat16, **options: Any
    ) -> Engine:
        """An engine on this card over a model of these configs; from here on it is watched. `family` is
        the whole model's config class, `vision_…` and `image_…` are settings of it."""
        names = [name for name in options if name.startswith(("vision_", "image_"))]
        settings = {name: options.pop(name) for name in names}
        family = options.pop("family", LlavaConfig)
        config = family(vision_config=vision, text_config=text, image_token_id=IMAGE, **settings)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device("cuda"), no_init_weights():
                model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[family](config)
        finally:
            torch.set_default_dtype(before)
        model.generation_config.eos_token_id = EOS
        self.watch.phase = "start"
        made = Engine(model, **{"slots": 5, "slot_tokens": 80, "max_tokens": 200, **options})
        self.watch.phase = "step"
        return made


def _not_to_be_called(*_: Any, **__: Any) -> Any:
    raise Fault(f"this waits for the device on a card {where()}")


def _called(seen: set[str], name: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    seen.add(name)
    return FLASH[name](*args, **kwargs)


def _check_halves(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert tensor.device.type == "cuda"
        assert tensor.dtype in (torch.bfloat16, torch.float16)
        assert tensor.dtype == tensors[0].dtype
        assert tensor.stride(-1) == 1
        assert tensor.shape[-1] == tensors[0].shape[-1] <= 256


def _check_counts(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert tensor.device.type == "cuda"
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()


def _check_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, at: int) -> None:
    assert key.shape == value.shape
    assert query.shape[at] % key.shape[at] == 0


def flash_attn_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), deterministic: bool = False,
) -> torch.Tensor:  # fmt: skip
    """`[B, Q, Hq, D]`, `[B, K, H, D]` -> `[B, Q, Hq, D]`."""
    _check_halves(q, k, v)
    _check_heads(q, k, v, 2)
    assert q.dim() == k.dim() == 4
    return torch.empty_like(q)


def flash_attn_varlen_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor, max_seqlen_q: int, max_seqlen_k: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), deterministic: bool = False,
) -> torch.Tensor:  # fmt: skip
    """`[Q, Hq, D]`, `[K, H, D]` -> `[Q, Hq, D]`."""
    _check_halves(q, k, v)
    _check_counts(cu_seqlens_q, cu_seqlens_k)
    _check_heads(q, k, v, 1)
    assert q.dim() == k.dim() == 3
    assert cu_seqlens_q.shape == cu_seqlens_k.shape
    assert type(max_seqlen_q) is type(max_seqlen_k) is int
    assert all(type(side) is int for side in window_size)
    return torch.empty_like(q)


def flash_attn_with_kvcache(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k: None = None, v: None = None,
    rotary_cos: None = None, rotary_sin: None = None, cache_seqlens: torch.Tensor | None = None,
    cache_batch_idx: None = None, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    """`[B, 1, Hq, D]`, `[B, L, H, D]` -> `[B, 1, Hq, D]`."""
    _check_halves(q, k_cache, v_cache)
    assert cache_seqlens is not None
    _check_counts(cache_seqlens)
    _check_heads(q, k_cache, v_cache, 2)
    assert q.shape[0] == k_cache.shape[0] == len(cache_seqlens)
    return torch.empty_like(q)


FLASH: dict[str, Callable[..., torch.Tensor]] = {
    "flash_attn_func": flash_attn_func,
    "flash_attn_varlen_func": flash_attn_varlen_func,
    "flash_attn_with_kvcache": flash_attn_with_kvcache,
}
