"""A store behind a server that fails: on loopback, requests handed on to an S3 server as they stand."""

import hashlib
import http.client
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str | None
"""What a request meets: `503`, `cut` (the connection ends without an answer), or nothing."""


def drawn(seed: int, key: str) -> float:
    """A number from 0 to 1 that depends on the seed and the key alone."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class FaultyServer(ThreadingHTTPServer):
    """Asks `fault(path, number)` what the `number`-th request (from 0) for a path meets."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behind: str, fault: Callable[[str, int], Fault]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.fault = behind.removeprefix("http://"), fault
        self.seen: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def meets(self, path: str) -> Fault:
        with self.lock:
            number = self.seen[path]
            self.seen[path] += 1
            found = self.fault(path, number)
            self.faults[found or "none"] += 1
            return found

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def _hand_on(self) -> None:
        fault = self.server.meets(self.path)
        if fault == "cut":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "503":
            self.send_response(503, "Slow Down")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        behind = http.client.HTTPConnection(self.server.behind, timeout=60)
        behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            behind.putheader(name, value)
        behind.endheaders(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        got = behind.getresponse()
        body = got.read()
        self.send_response(got.status, got.reason)
        for name, value in got.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        if got.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        behind.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _hand_on

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
