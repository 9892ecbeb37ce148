"""Builds the fused CPU kernels from the files of SOURCES.

Once per machine, with the system's C++ compiler; they are kept in the user's cache folder. Where there is no
AVX-512 `why_not` says so, where there is no compiler or an old one `why_not_built`, and the engine runs on
torch's own kernels.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache as remember
from pathlib import Path

import torch

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in (
        *("cpu_kernels.h", "cpu_vectors.h"),
        *("cpu_attention.cpp", "cpu_matmul.cpp", "cpu_norm.cpp", "cpu_layer.cpp", "cpu_draw.cpp"),
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
