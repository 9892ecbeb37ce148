"""What is on its way from a storage to the decoder: each image, and how many bytes all of them hold."""

import threading
from dataclasses import dataclass


@dataclass
class Flight:
    """One image on its way."""

    uri: str
    row: int
    """Its row's number in the batch: rows are decoded in that order."""
    since: float | None = None
    """When the call to the storage that is under way began; None while it waits for anything else."""
    held: int = 0
    """Bytes of it that count as held."""
    left: bool = False
    """Nobody waits for it any more."""


class Held:
    """Bytes that were fetched and are not decoded yet, bounded. The row whose turn it is gets its own
    whatever the others hold, or nothing would ever go on."""

    def __init__(self, most: int) -> None:
        self._most, self._used, self._turn = most, 0, 0
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    def turn(self, row: int) -> None:
        """`row` is decoded next."""
        with self._changed:
            self._turn = row
            self._changed.notify_all()

    def take(self, size: int, flight: Flight) -> None:
        """Count `size` bytes in, once they fit."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(size, flight))
            self._count(size, flight)

    def try_take(self, size: int, flight: Flight) -> bool:
        """Count `size` bytes in, if they fit."""
        with self._changed:
            fits = self._fits(size, flight)
            if fits:
                self._count(size, flight)
            return fits

    def give_back(self, flight: Flight) -> None:
        """Count all of a flight's bytes out."""
        with self._changed:
            self._count(-flight.held, flight)
            self._changed.notify_all()

    def _fits(self, size: int, flight: Flight) -> bool:
        return flight.left or flight.row <= self._turn or self._used + size <= self._most

    def _count(self, size: int, flight: Flight) -> None:
        self._used += size
        flight.held += size
