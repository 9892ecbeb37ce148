"""An engine that has answered thousands of requests holds no more than it did at the start."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_llava import engine, image, requests

MOST_BYTES = 8 * 2**20
"""Less than 3 kB a request: an image's features or a prompt's ids that stayed would be more."""


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
def test_thousands_of_requests_leave_memory_as_it_was():
    made = engine(slots=8)
    (one,) = requests(1, max_new_tokens=3)

    def answer(first: int, last: int) -> int:
        """Requests with an image each of their own, so that nothing is reused."""
        given = (replace(one, id=f"{n}", pixels=image(n)) for n in range(first, last))
        return sum(1 for _ in made.generate(given))

    answer(0, 500)
    before = resident_bytes()
    assert answer(500, 3500) == 3000
    assert resident_bytes() - before < MOST_BYTES
    assert not made.num_active
    assert not made.num_waiting
