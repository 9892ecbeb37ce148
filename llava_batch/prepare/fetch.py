"""Fetch: the images of a table's URIs, many at once, each its bytes or what is wrong with it.

At once: `AT_ONCE` images, and `HELD_BYTES` that wait to be decoded (the one that is next may be larger).
Tried again: what may pass (`patience.is_passing`: broken connections, timeouts, HTTP 408, 429 and 5xx), `TRIES`
times within `IMAGE_S`, ever longer apart; then the image is `image_unreachable`. What is refused (not
there, no permission, not a file) is `image_missing` at once.

Two things can be away. One image, while its storage answers otherwise: that costs its row some seconds,
never hours. And a whole storage (a bucket, a mount): it is asked for something else, and where that
fails too, all images wait for it, for `--storage-patience` once; after that each has one try until it
answers again. A host of the web is no storage: it is not waited for, and one that no connection
could be made to has one try an image, until it answers.

A read that never returns is left to its thread after `HUNG_S`.
"""

import os
import random
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava_batch.errors import RowError
from llava_batch.patience import Outage, Patience, is_passing
from llava_batch.prepare.in_flight import Flight, Held
from llava_batch.prepare.pixels import BadImage
from llava_batch.prepare.stores import Bucket, NoConnection, Place, Stores, open_local
from llava_batch.storage import scrubbed, without_credentials

if TYPE_CHECKING:
    from llava_batch.prepare.web import Web

AT_ONCE = 32
HELD_BYTES = 256 * 2**20
TRIES, WEB_TRIES = 5, 3
IMAGE_S = 60.0
HUNG_S = 3 * IMAGE_S
_FIRST_WAIT_S = 0.5
_ROUNDS = 3
"""How often an image is tried anew because its storage was away."""
_MOST_HUNG = 64
_MOST_KNOWN = 10_000

Fetched = bytes | BadImage


@dataclass
class _Health:
    """What is known of one storage, or of a host of the web."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    given_up: bool = False
    back_at: float = float("-inf")


class Fetch:
    """The fetcher of one process. One batch at a time, from one thread."""

    def __init__(self, stores: Stores, *, max_image_bytes: int, patience: Patience) -> None:
        self._stores, self._max_bytes, self._patience = stores, max_image_bytes, patience
        self.held = Held(HELD_BYTES)
        self._known: dict[Bucket, _Health] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, "fetch")
        self._web: Web | None = None
        self._web_lock = threading.Lock()
        self._hung = 0

    def rows(self, rows: Sequence[Sequence[str]]) -> Generator[list[Fetched]]:
        """The images of each row's absolute paths and URIs, row by row, in order. What is yielded counts
        as held until the next is asked for."""
        self.held.turn(0)
        flights = [[Flight(uri, number) for uri in uris] for number, uris in enumerate(rows)]
        started = [[(f, self._pool.submit(self._fetched, f)) for f in row] for row in flights]
        try:
            for number, row in enumerate(started):
                self.held.turn(number)
                yield [self._result(flight, future) for flight, future in row]
                for flight in flights[number]:
                    self._leave(flight)
        finally:
            for flight, future in (pair for row in started for pair in row):
                future.cancel()
                self._leave(flight)

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._web is not None:
            self._web.close()

    def _result(self, flight: Flight, future: "Future[Fetched]") -> Fetched:
        while not wait([future], timeout=1.0).done:
            if future.cancelled():  # it was queued behind one that never returned
                future = self._pool.submit(self._fetched, flight)
            elif flight.since is not None and time.monotonic() - flight.since > HUNG_S:
                self._hung += 1
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = ThreadPoolExecutor(AT_ONCE, "fetch")
                return _unreachable(flight.uri, f"reading it did not end in {HUNG_S:.0f} s")
        return future.result()

    def _leave(self, flight: Flight) -> None:
        flight.left = True
        self.held.give_back(flight)

    def _fetched(self, flight: Flight) -> Fetched:
        try:
            if self._hung >= _MOST_HUNG:
                return _unreachable(flight.uri, f"{self._hung} reads before it did not end")
            return self._persistently(flight)
        except BadImage as error:
            return BadImage(error.code, f"{shown(flight.uri)}: {error}")
        except MemoryError:
            what = f"{shown(flight.uri)}: not enough memory to fetch it"
            return BadImage(RowError.IMAGE_TOO_LARGE, what)
        finally:
            if flight.left:
                self.held.give_back(flight)

    def _persistently(self, flight: Flight) -> Fetched:
        """The image, tried as often as its storage deserves.

        Raises:
            BadImage: it was refused.
        """
        said = ""
        for _ in range(_ROUNDS):
            try:
                return self._round(flight)
            except _Passing as error:
                said = str(error)
                if error.place is None or not self._came_back(error.place, silent=error.silent):
                    break
        return _unreachable(flight.uri, said)

    def _round(self, flight: Flight) -> bytes:
        """Some tries, ever longer apart.

        Raises:
            BadImage: it was refused.
            _Passing: none went well.
        """
        began, number = self._patience.clock(), 0
        while True:
            tried = self._try(flight)
            if isinstance(tried, bytes):
                return tried
            number += 1
            late = self._patience.clock() - began > IMAGE_S
            if late or number >= self._tries(tried.place):
                raise tried
            wait_s = _FIRST_WAIT_S * 2 ** (number - 1) * random.uniform(0.5, 1.5)
            self._patience.sleep(wait_s)

    def _tries(self, place: Place | None) -> int:
        if place is not None and self._health(place).given_up:
            return 1
        return WEB_TRIES if place is not None and place.fs is None else TRIES

    def _try(self, flight: Flight) -> "bytes | _Passing":
        """One try: the image, or what may pass.

        Raises:
            BadImage: it was refused.
        """
        place = None
        try:
            flight.since = time.monotonic()
            place = self._stores.place(flight.uri)
            data = self._read(place, flight)
        except MemoryError:
            self.held.give_back(flight)
            raise
        except Exception as error:
            self.held.give_back(flight)
            failed = _verdict(error, flight.uri, place)
            if isinstance(failed, _Passing):
                return failed
            self._answered(place)
            raise failed from error
        finally:
            flight.since = None
        self._answered(place)
        return data

    def _answered(self, place: Place | None) -> None:
        if place is not None:
            self._health(place).given_up = False

    def _read(self, place: Place, flight: Flight) -> bytes:
        if place.fs is None:
            data = self._on_the_web().get(place.uri, IMAGE_S, lambda n: self._may_grow(n, flight))
        elif place.is_local:
            with open(open_local(place.path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._make_room(size, flight)
                data = file.read(size)
        else:
            with place.fs.open_input_file(place.path) as file:
                size = file.size()
                self._make_room(size, flight)
                data = file.read(size)
        if not data:
            raise BadImage(RowError.IMAGE_MISSING, "it is empty")
        if place.fs is not None and len(data) < size:
            raise OSError(f"{len(data)} of {size} bytes came")
        return data

    def _make_room(self, size: int, flight: Flight) -> None:
        """Wait until `size` bytes more may be held."""
        if size > self._max_bytes:
            what = f"{size} bytes, the limit is {self._max_bytes} (--max-image-bytes)"
            raise BadImage(RowError.IMAGE_TOO_LARGE, what)
        flight.since = None
        self.held.take(size, flight)
        flight.since = time.monotonic()

    def _may_grow(self, size: int, flight: Flight) -> bool:
        flight.since = time.monotonic()
        return self.held.try_take(size, flight)

    def _on_the_web(self) -> "Web":
        from llava_batch.prepare.web import Web

        with self._web_lock:
            if self._web is None:
                self._web = Web(max_bytes=self._max_bytes)
            return self._web

    def _health(self, place: Place) -> _Health:
        if len(self._known) > _MOST_KNOWN:  # hosts of the web
            self._known = {}
        return self._known.setdefault(place.bucket, _Health())

    def _came_back(self, place: Place, *, silent: bool) -> bool:
        """Whether the image's storage was away, and is there again; it is waited for. `silent`: no
        connection could be made."""
        health, failed_at = self._health(place), self._patience.clock()
        if place.fs is None:
            health.given_up |= silent
            return False
        with health.lock:  # one asks, the others wait for what it hears
            if health.given_up or health.back_at >= failed_at:
                return not health.given_up
            failed = _fails(place)
            if failed is None:
                return False
            outage = Outage(self._patience)
            while outage.waited(failed):
                failed = _fails(place)
                if failed is None:
                    health.back_at = self._patience.clock()
                    return True
            health.given_up = True
            return False


class _Passing(Exception):
    """A try that failed of something that may pass."""

    def __init__(self, said: str, place: Place | None, *, silent: bool) -> None:
        super().__init__(said)
        self.place, self.silent = place, silent


def _verdict(error: Exception, uri: str, place: Place | None) -> "BadImage | _Passing":
    """What a failed try says of the image."""
    if isinstance(error, BadImage):
        return error
    if is_passing(error) and not isinstance(error, ValueError):
        return _Passing(_said(error, uri), place, silent=isinstance(error, NoConnection))
    return BadImage(RowError.IMAGE_MISSING, _said(error, uri))


def _said(error: Exception, uri: str) -> str:
    """The error in a line, without what a URI may hide."""
    if isinstance(error, FileNotFoundError):
        return "no such file or object"
    if isinstance(error, IsADirectoryError):
        return "a folder"
    try:
        return scrubbed(error, uri)[:300]
    except ValueError:
        return type(error).__name__


def _fails(place: Place) -> OSError | None:
    """How the image's storage fails when it is asked for something else; None where it answers."""
    try:
        place.ask()
    except Exception as error:  # noqa: BLE001 a storage's library raises anything at all
        return OSError(_said(error, place.uri)) if is_passing(error) else None
    return None


def _unreachable(uri: str, what: str) -> BadImage:
    return BadImage(RowError.IMAGE_UNREACHABLE, f"{shown(uri)}: {what}")


def shown(uri: str) -> str:
    """A URI as a person may see it."""
    try:
        return without_credentials(uri)[:300]
    except ValueError:  # one that cannot be taken apart
        return uri.partition(":")[0] + ":…"
