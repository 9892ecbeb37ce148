"""Memory in large pages: zeros, touched late, and refused as torch refuses it."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava_batch.engine import pages
from llava_batch.engine.cache import SlotCache
from llava_batch.engine.device import is_out_of_memory

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def of_process(name: str) -> int:
    """Bytes of this process, by Linux's count."""
    text = Path("/proc/self/smaps_rollup").read_text()
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(kilobytes) * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (7, 300_001), (2, 2**20)])
def test_it_is_zeros_of_the_shape_asked_for(shape, dtype):
    made = pages.zeros(shape, dtype)
    assert made.shape == shape and made.dtype == dtype and made.is_contiguous()
    assert not made.any()
    made.fill_(1)
    assert made.sum(dtype=torch.float64) == made.numel()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux counts it")
def test_what_nobody_writes_costs_no_memory_and_what_is_written_lies_in_large_pages():
    size = 64 * pages.PAGE
    before = of_process("Rss"), of_process("AnonHugePages")
    made = pages.zeros((64, pages.PAGE), torch.uint8)
    assert of_process("Rss") - before[0] < size / 4
    made[::2] = 1
    assert of_process("Rss") - before[0] < 3 / 4 * size
    asked_for = os.environ.get("NUMPY_MADVISE_HUGEPAGE") != "0"
    if asked_for and SETTING.exists() and "[never]" not in SETTING.read_text():
        assert of_process("AnonHugePages") > before[1]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux counts it")
@pytest.mark.parametrize("token_major", [False, True])
def test_a_caches_memory_is_taken_when_it_is_made(token_major):
    # By free memory another worker of the machine decides on its own slots.
    config = SimpleNamespace(num_hidden_layers=2, num_attention_heads=4, hidden_size=256)
    before = of_process("Rss")
    made = SlotCache(
        config, num_slots=8, slot_tokens=4096, max_tokens=4096, dtype=torch.float32,
        device=torch.device("cpu"), token_major=token_major,
    )  # fmt: skip
    assert made.num_bytes == 2**27
    assert of_process("Rss") - before > 0.9 * made.num_bytes


def test_more_than_there_is_is_refused_as_by_torch():
    with pytest.raises(RuntimeError) as refused:
        pages.zeros((2**60,), torch.uint8)
    assert is_out_of_memory(refused.value)
