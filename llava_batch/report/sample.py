"""Which rows the page shows, the same in every run whatever the order they come in.

A row is drawn by the smallest hash of (seed, name), so a sample of a growing folder changes by the
new rows alone. It looks at names alone.
"""

import heapq
from hashlib import blake2b
from typing import Generic, TypeVar

LAST_RANK = 2**64
"""One past the highest rank; added to a rank, it puts a name behind all others."""

T = TypeVar("T")


def sample_rank(seed: int, name: str) -> int:
    """A number from 0 up to 2**64 that orders names as if at random, equal in every process."""
    digest = blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class Smallest(Generic[T]):
    """Keeps the `most` (at least one) values of the smallest ranks among all that were offered."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, T]] = []
        self._offered = 0

    def takes(self, rank: int) -> bool:
        """Whether a value of this rank would be kept."""
        return len(self._heap) < self._most or rank < -self._heap[0][0]

    def offer(self, rank: int, value: T) -> None:
        """Take `value` in if its rank is among the smallest so far."""
        if not self.takes(rank):
            return
        self._offered += 1
        item = (-rank, self._offered, value)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, item)
        else:
            heapq.heapreplace(self._heap, item)

    def values(self) -> list[T]:
        """What was kept, by rank."""
        return [value for _, _, value in sorted(self._heap, key=lambda item: -item[0])]
