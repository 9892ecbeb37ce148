"""Images from the web: what is followed, what is refused, and how much of it is read."""

import gzip
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llava_batch.job import Job
from llava_batch.patience import Patience
from llava_batch.prepare import fetch as fetch_module
from llava_batch.prepare import web as web_module
from llava_batch.prepare.fetch import WEB_TRIES, Fetch, Fetched
from llava_batch.prepare.pixels import BadImage
from llava_batch.prepare.stores import Stores
from llava_batch.prepare.web import why_not
from tests.shards import picture

Answer = Callable[["_Handler"], None]
NOW = Patience(0.0, sleep=lambda seconds: None)


class Site(ThreadingHTTPServer):
    """Answers each path as `pages` says; counts the requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Answer] = {}
        self.seen: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def at(self, path: str, answer: Answer, host: str = "127.0.0.1") -> str:
        self.pages[path] = answer
        return f"http://{host}:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen[path] += 1
        self.server.headers = dict(self.headers)
        self.server.pages[path](self)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def send(data: bytes = b"", status: int = 200, **headers: str) -> Answer:
    def answer(page: _Handler) -> None:
        page.send_response(status)
        said = {"Content-Length": str(len(data))} | {
            n.replace("_", "-"): v for n, v in headers.items()
        }
        for name, value in said.items():
            page.send_header(name, value)
        page.end_headers()
        page.wfile.write(data)

    return answer


def to(location: str, status: int = 302) -> Answer:
    return send(status=status, Location=location)


def cut(page: _Handler) -> None:
    page.close_connection = True
    page.connection.close()


def in_turn(*answers: Answer) -> Answer:
    left = list(answers)
    return lambda page: (left.pop(0) if len(left) > 1 else left[0])(page)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.shutdown()
    made.server_close()


def fetched(*uris: str, most: int = 10**6) -> list[Fetched]:
    fetch = Fetch(Stores.of(Job(allow_http=True)), max_image_bytes=most, patience=NOW)
    try:
        got = [image for (image,) in fetch.rows([[uri] for uri in uris])]
        assert fetch.held.used == 0
        return got
    finally:
        fetch.close()


def refused(uri: str, most: int = 10**6) -> tuple[str, str]:
    (got,) = fetched(uri, most=most)
    assert isinstance(got, BadImage), "it was fetched"
    return got.code.value, str(got)


def test_an_image_is_fetched_from_loopback_and_redirects_are_followed(site):
    good = site.at("/a.png", send(picture()))
    hop = site.at("/hop", to("/a.png", 308))
    away = site.at("/away", to(hop.replace("127.0.0.1", "localhost"), 301))
    assert fetched(good, hop, away) == [picture()] * 3
    assert site.headers["Accept-Encoding"] == "identity"
    assert site.headers["User-Agent"].startswith("llava-batch/")


def test_a_signed_query_is_sent_as_it_stands_and_is_said_nowhere(site):
    asked = []

    def answer(page: _Handler) -> None:
        asked.append(page.path)
        send(status=403)(page)

    query = "X-Sig=a%2Fb%2Bc%3D&x=1+2&hidden"
    code, what = refused(site.at("/a%2Fb.png", answer) + f"?{query}")
    assert asked == [f"/a%2Fb.png?{query}"]
    assert code == "image_missing" and "403" in what and "hidden" not in what and "Sig" not in what


def test_a_password_in_an_address_is_used_and_said_nowhere(site):
    uri = site.at("/a", send(status=404)).replace("http://", "http://me:hidden@")
    assert "hidden" not in refused(uri)[1]
    assert site.headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "s3://lake/a.png",
        "data:image/png;base64,AAAA",
        "gopher://127.0.0.1/",
        "",
        "http://[bad/",
    ],
)
def test_a_redirect_to_another_scheme_is_not_followed(site, location):
    assert refused(site.at("/a", to(location)))[0] == "image_missing"


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "169.254.43518",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[fd00:ec2::254]",
        "[64:ff9b::a9fe:a9fe]",
    ],
)
def test_link_local_addresses_are_refused_first_and_after_a_redirect(site, host):
    aim = f"http://{host}/latest/meta-data"
    for uri in (aim, site.at("/a", to(aim)), site.at("/b", to(site.at("/c", to(aim))))):
        before = time.monotonic()
        code, what = refused(uri)
        assert code in ("image_missing", "image_unreachable"), what
        assert time.monotonic() - before < 4  # no connection was tried
    if host == "169.254.169.254":
        assert code == "image_missing" and "link-local" in what


def test_a_name_that_resolves_to_a_link_local_address_is_refused(site, monkeypatch):
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **named: Any) -> Any:
        if host == "rebinds.example":
            at = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))
            return [at]
        return real(host, port, *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for uri in ("http://rebinds.example/a", site.at("/a", to("http://rebinds.example/a"))):
        code, what = refused(uri)
        assert code == "image_missing" and "link-local" in what


@pytest.mark.parametrize(
    ("address", "is_refused"),
    [
        ("127.0.0.1", False), ("::1", False), ("10.0.0.1", False), ("192.168.1.1", False),
        ("8.8.8.8", False), ("fd00::1", False), ("2001:db8::1", False), ("64:ff9b::808:808", False),
        ("169.254.0.1", True), ("169.254.169.254", True), ("fe80::1", True), ("fe80::1%eth0", True),
        ("::ffff:169.254.1.1", True), ("2002:a9fe:a9fe::", True), ("64:ff9b::a9fe:1", True),
        ("100.100.100.200", True), ("168.63.129.16", True), ("fd00:ec2::254", True),
    ],
)  # fmt: skip
def test_link_local_and_metadata_addresses_are_told_from_all_others(address, is_refused):
    assert bool(why_not(address)) == is_refused


def test_a_circle_of_redirects_ends(site):
    code, what = refused(site.at("/a", to("/a")))
    assert code == "image_missing" and "redirects" in what
    assert site.seen["/a"] == web_module.MAX_HOPS + 1


def test_statuses_that_may_pass_are_tried_again_and_others_are_not(site):
    good = send(picture())
    uris = [
        site.at("/1", in_turn(send(status=503), cut, good)),
        site.at("/2", in_turn(send(status=429), good)),
        site.at("/3", send(status=500)),
        site.at("/4", cut),
        site.at("/5", send(status=404)),
        site.at("/6", send(status=410)),
        site.at("/7", send(b"")),
        site.at("/8", send(status=204)),
    ]
    got = ["ok" if isinstance(g, bytes) else g.code.value for g in fetched(*uris)]
    assert got == ["ok"] * 2 + ["image_unreachable"] * 2 + ["image_missing"] * 4
    assert [site.seen[f"/{n}"] for n in (3, 5, 6, 7, 8)] == [WEB_TRIES, 1, 1, 1, 1]


def test_a_body_that_ends_early_is_tried_again(site):
    short = send(picture()[:20], Content_Length=str(len(picture())), Connection="close")

    def ends(page: _Handler) -> None:
        short(page)
        page.close_connection = True

    assert fetched(site.at("/a", in_turn(ends, send(picture())))) == [picture()]
    assert refused(site.at("/b", ends))[0] == "image_unreachable"


def test_a_body_is_measured_as_it_comes_whatever_its_length_header_says(site):
    sent: list[int] = []

    def endless(page: _Handler) -> None:
        page.send_response(200)
        page.send_header("Transfer-Encoding", "chunked")
        page.end_headers()
        while len(sent) < 10_000:
            page.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent.append(65536)

    def no_length(page: _Handler) -> None:
        page.send_response(200)
        page.send_header("Connection", "close")
        page.end_headers()
        page.close_connection = True
        page.wfile.write(b"x" * 200_000)

    assert refused(site.at("/a", endless), most=100_000)[0] == "image_too_large"
    assert refused(site.at("/b", no_length), most=100_000)[0] == "image_too_large"
    assert refused(site.at("/c", send(b"x" * 100_001)), most=100_000)[0] == "image_too_large"
    assert fetched(site.at("/d", send(b"x" * 100_000)), most=100_000) == [b"x" * 100_000]
    assert sum(sent) < 10_000 * 65536


def test_a_packed_body_is_unpacked_within_the_same_bound(site):
    bomb = gzip.compress(b"\0" * 50_000_000)
    uris = [
        site.at("/a", send(gzip.compress(picture()), Content_Encoding="gzip")),
        site.at("/b", send(zlib.compress(picture()), Content_Encoding="deflate")),
        site.at("/c", send(bomb, Content_Encoding="gzip")),
        site.at("/d", send(b"not packed", Content_Encoding="gzip")),
        site.at("/e", send(picture(), Content_Encoding="br")),
        site.at("/f", send(gzip.compress(picture())[:-12], Content_Encoding="gzip")),
    ]
    got = fetched(*uris, most=100_000)
    assert got[:2] == [picture()] * 2
    bad = [g.code.value for g in got[2:] if isinstance(g, BadImage)]
    assert bad == ["image_too_large", "image_missing", "image_missing", "image_unreachable"]


def test_a_server_that_drips_is_left_after_a_time(site, monkeypatch):
    monkeypatch.setattr(fetch_module, "WEB_S", 0.3)

    def drips(page: _Handler) -> None:
        page.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for n in range(600):
            page.wfile.write(f"X-{n}: 1\r\n".encode())
            page.wfile.flush()
            time.sleep(0.05)

    before = time.monotonic()
    code, what = refused(site.at("/a", drips))
    assert code == "image_unreachable" and "in time" in what
    assert time.monotonic() - before < 10


def test_a_host_that_cannot_be_connected_to_has_one_try_an_image_after_its_first(monkeypatch):
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port = made.getsockname()[1]
    tries: list[Any] = []
    real = web_module._socket

    def counted(info: tuple[Any, ...]) -> socket.socket:
        tries.append(info)
        return real(info)

    monkeypatch.setattr(web_module, "_socket", counted)
    fetch = Fetch(Stores.of(Job(allow_http=True)), max_image_bytes=10**6, patience=NOW)
    for number in range(5):
        ((got,),) = fetch.rows([[f"http://127.0.0.1:{port}/{number}"]])
        assert isinstance(got, BadImage) and got.code.value == "image_unreachable"
    assert len(tries) == WEB_TRIES + 4
    fetch.close()


def test_many_images_of_one_host_come_whatever_their_order(site):
    uris = [site.at(f"/{n}", send(picture(n))) for n in range(200)]
    assert fetched(*uris) == [picture(n) for n in range(200)]


def test_bytes_of_the_web_that_may_not_be_held_yet_are_waited_for(site, monkeypatch):
    monkeypatch.setattr(fetch_module, "HELD_BYTES", 250_000)
    bodies = [bytes([n]) * 100_000 for n in range(20)]
    uris = [site.at(f"/{n}", send(body)) for n, body in enumerate(bodies)]
    fetch = Fetch(Stores.of(Job(allow_http=True)), max_image_bytes=10**6, patience=NOW)
    most = 0
    for number, (image,) in enumerate(fetch.rows([[uri] for uri in uris])):
        assert image == bodies[number]
        most = max(most, fetch.held.used)
    assert most <= 350_000
    fetch.close()
