"""Web: images by http and https, for tables that are not trusted, with `--allow-http`.

Redirects are followed a few times, to http and https only. No connection is made to a link-local
address or to a cloud's metadata service, in any hop and whatever name it goes by: the address is looked
at when the socket is made. Loopback and private networks are allowed: that is where companies keep their
images. A body is measured as it comes and never by what its headers say, also unpacked. Proxies of
the environment are not used. What is in a URI's query is said nowhere.
"""

import asyncio
import errno
import ipaddress
import socket
import ssl
import threading
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from yarl import URL

from llava_batch.errors import RowError
from llava_batch.prepare.pixels import BadImage
from llava_batch.prepare.stores import NoConnection
from llava_batch.version import __version__

MAX_HOPS = 10
_CONNECT_S, _SILENT_S = 5.0, 20.0
_EACH_HOST = 16
"""Connections to one host at once, of one worker."""

_HEADERS = {
    "User-Agent": f"llava-batch/{__version__}",
    "Accept": "image/*,*/*;q=0.8",
    "Accept-Encoding": "identity",
}
_POLL_S = 0.05
_RoomFor = Callable[[int], Awaitable[None]]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429})

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"),
    )
)
"""Where clouds tell a machine its credentials, beside the link-local addresses that most use."""
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


def why_not(host: str) -> str | None:
    """Why no connection is made to an IP address; None where one is."""
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if address.scope_id is None and address in _TRANSLATED:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        address = inside or address
    if address.is_link_local:
        return f"{address} is a link-local address"
    return f"{address} is a metadata service" if address in _METADATA else None


class Web:
    """One event loop in a thread of its own, and one session on it. Any thread may call `get`."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        threading.Thread(target=self._loop.run_forever, name="web", daemon=True).start()

    def get(self, url: str, seconds: float, may_grow: Callable[[int], bool]) -> bytes:
        """The body at `url`, which has `seconds` to come; asks `may_grow` for each piece's bytes, and
        asks again until they may.

        Raises:
            BadImage: there is none to be had, or it is too large.
            OSError: that may pass.
        """
        coming = self._in_time(url, seconds, may_grow)
        return asyncio.run_coroutine_threadsafe(coming, self._loop).result()

    def close(self) -> None:
        """End the session and its thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _in_time(self, url: str, seconds: float, may_grow: Callable[[int], bool]) -> bytes:
        async def room_for(size: int) -> None:
            while not may_grow(size):
                await asyncio.sleep(_POLL_S)
                limit.reschedule(self._loop.time() + seconds)

        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._get(_parsed(url), room_for)
        except aiohttp.ConnectionTimeoutError:
            raise NoConnection(f"no connection in {_CONNECT_S:.0f} s") from None
        except TimeoutError:
            raise OSError("no whole answer in time") from None
        except aiohttp.ClientError as error:
            raise _as_ours(error) from None

    async def _get(self, url: URL, room_for: _RoomFor) -> bytes:
        for _ in range(MAX_HOPS + 1):
            _refuse(url)
            async with self._opened().get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._body(response, room_for)
                location = response.headers.get("Location", "")
                url = url.join(_parsed(location))
        raise _missing(f"more than {MAX_HOPS} redirects")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    socket_factory=_socket, limit_per_host=_EACH_HOST, ttl_dns_cache=60
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S
                ),
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    async def _body(self, response: aiohttp.ClientResponse, room_for: _RoomFor) -> bytes:
        status = response.status
        if status in _PASSING or status >= 500:
            raise OSError(f"HTTP status {status}")
        if status != 200:
            raise _missing(f"HTTP status {status}")
        parts, size = [], 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > self._max_bytes:
                raise _too_large(self._max_bytes)
            await room_for(len(part))
            parts.append(part)
        return _unpacked(
            b"".join(parts), response.headers.get("Content-Encoding", ""), self._max_bytes
        )


def _parsed(text: str) -> URL:
    """A URI as it stands where it is one, or with what must be escaped escaped."""
    plain = text.isascii() and text.isprintable() and not set(text) & set(' "<>\\^`{|}')
    try:
        return URL(text, encoded=plain)
    except ValueError:
        raise _missing("not a web address") from None


def _refuse(url: URL) -> None:
    if url.scheme not in ("http", "https"):
        raise _missing(f"redirects to {url.scheme or 'nothing'}:, which is not followed")
    if not url.host:
        raise _missing("not a web address")


def _socket(info: tuple[Any, ...]) -> socket.socket:
    """The socket for an address that a name was resolved to, or that stands in the URI itself."""
    family, kind, protocol, _, address = info
    problem = why_not(address[0])
    if problem:
        raise PermissionError(errno.EACCES, f"{problem}, which is not fetched from")
    return socket.socket(family=family, type=kind, proto=protocol)


def _as_ours(error: aiohttp.ClientError) -> Exception:
    """aiohttp's errors without the URIs that they print."""
    if isinstance(error, aiohttp.InvalidURL):
        return _missing("not a web address")
    if isinstance(error, ssl.CertificateError):
        return _missing("its certificate is not valid")
    if isinstance(error, aiohttp.ClientConnectorError):
        number, said = error.os_error.errno, error.os_error.strerror or "cannot connect"
        return NoConnection(said) if number is None else NoConnection(number, said)
    return OSError(f"the connection failed ({type(error).__name__})")


def _unpacked(data: bytes, encoding: str, most: int) -> bytes:
    """The body of a server that packs although it was asked not to."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return data
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _missing(f"packed as {encoding[:20]}, which was not asked for")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        out = unpacker.decompress(data, most + 1)
    except zlib.error:
        raise _missing(f"its {encoding} cannot be unpacked") from None
    if len(out) > most:
        raise _too_large(most)
    if not unpacker.eof:
        raise OSError("the connection ended early")
    return out


def _too_large(most: int) -> BadImage:
    what = f"more than {most} bytes, the limit (--max-image-bytes)"
    return BadImage(RowError.IMAGE_TOO_LARGE, what)


def _missing(what: str) -> BadImage:
    return BadImage(RowError.IMAGE_MISSING, what)
