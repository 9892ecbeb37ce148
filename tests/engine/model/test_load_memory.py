"""What loading takes of memory at its peak: the weights, and little beside them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOST = 1.3
"""Times the weights in float32, beyond the mapped file."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_loading_in_float32_never_holds_the_model_twice() -> None:
    script = ROOT / "benchmarks" / "load_memory.py"
    command = [sys.executable, str(script), "--layers", "8", "--vocab", "2000"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for stored, found in json.loads(out.splitlines()[-1])["by_stored"].items():
        assert found["weights_bytes"] > 4e8
        assert 0.8 < found["peak"] < MOST, f"stored in {stored}"
