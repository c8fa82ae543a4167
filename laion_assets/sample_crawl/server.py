"""The sample crawl's web on loopback: the crawl's data host, and good and bad image hosts.

Requests are routed by their Host header. ``*.sample.test`` are image hosts, which answer as
``routes.json`` of the built crawl says, and 404 for any other path. Every other name is the data
host, which serves the crawl's own files. What does not belong here: which answers are planted
(``answer_cases``).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import itertools
import json
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final
from urllib.parse import unquote, urlsplit

from laion_assets.sample_crawl.plan import Pictures

IMAGE_HOSTS: Final = ".sample.test"
REFUSING_HOST: Final = "dead.sample.test"
ROUTES: Final = "routes.json"
PICTURES: Final = "images.zip"
"""Pictures of a crawl that has its own; without this file, the committed ones are served."""

_TYPES: Final = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".bmp": "image/bmp",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".gz": "application/octet-stream",
    ".csv": "text/csv; charset=utf-8",
}
_CHANGED: Final = 946684800.0
"""Modification time of all pictures, which come from an archive: 2000-01-01."""
_TLS_HANDSHAKE: Final = 0x16
_TLS_FATAL_ALERT: Final = b"\x15\x03\x01\x00\x02\x02\x28"
_TAKE_OVER_S: Final = 0.05
"""How often a process that waits for a port tries it: in between, requests are refused."""
_BLOCK: Final = bytes(64 * 1024)


class SampleServer:
    """Serves a built sample crawl on 127.0.0.1 while its ``with`` block runs.

    ``requests`` counts requests by ``host/path?query``, without the port; those that another
    process answers are not among them.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        """``root``: the folder of a built crawl; ``port`` 0 takes a free port.

        If another process serves the same crawl there, this one takes over when that one ends.
        Raises ``OSError`` if anything else is served there.
        """
        self.requests: Counter[str] = Counter()
        self._root = root.resolve()
        self._routes = json.loads((root / ROUTES).read_text("utf-8"))
        own = root / PICTURES
        self._pictures = Pictures(own) if own.is_file() else Pictures()
        self._server: _Server | None = None
        try:
            self._server = self._bound(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if not _is_served(port, root):
                raise OSError(errno.EADDRINUSE, "something else is served there") from error
        self.port = int(self._server.server_address[1]) if self._server else port
        self._ended = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        """Root URL of the data host, with a slash at its end."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def connect_to(self) -> dict[str, str]:
        """Addresses to connect to by pattern of host name; the more specific pattern wins."""
        return {f"*{IMAGE_HOSTS}": f"127.0.0.1:{self.port}", REFUSING_HOST: "127.0.0.1:1"}

    def __enter__(self) -> SampleServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._turn:
            self._ended.set()
        if self._server:
            self._server.stopping.set()
            self._server.shutdown()
        self._thread.join()
        if self._server:
            self._server.server_close()

    def _serve(self) -> None:
        while (server := self._server) is None:
            if self._ended.wait(_TAKE_OVER_S):
                return
            with self._turn, contextlib.suppress(OSError):  # the other process still listens
                if not self._ended.is_set():
                    self._server = self._bound(self.port)
        server.serve_forever(0.05)

    def _bound(self, port: int) -> _Server:
        address = ("127.0.0.1", port)
        return _Server(address, self._root, self._routes, self._pictures, self.requests)


def serve(root: Path, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Call it in a process's main thread only."""
    # The signals are blocked and waited for, not handled: a handler that sets an event may
    # interrupt the very wait for that event while its lock is held, and hang.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        with SampleServer(root, port):
            signal.sigwait(_STOP_SIGNALS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def _is_served(port: int, root: Path) -> bool:
    """True if this very crawl is served at the port."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/{ROUTES}", timeout=5) as answer:
            return bool(answer.read() == (root / ROUTES).read_bytes())
    except (OSError, http.client.HTTPException):
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        root: Path,
        routes: dict[str, dict[str, dict[str, Any]]],
        pictures: Pictures,
        requests: Counter[str],
    ) -> None:
        self.root = root
        self.routes = routes
        self.requests = requests
        self.pictures = pictures
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "sample"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: tests and the demo have their own output."""

    def handle_one_request(self) -> None:
        try:
            first = self.rfile.peek(1)[:1]  # type: ignore[attr-defined]
            if first and first[0] == _TLS_HANDSHAKE:
                # The URL is https: this host speaks no TLS, and refuses with a TLS alert.
                self.wfile.write(_TLS_FATAL_ALERT)
                self.close_connection = True
                return
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client hung up, as a guarded downloader does

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0].lower()
        with self.server.lock:
            self.server.requests[host + self.path] += 1
        if host.endswith(IMAGE_HOSTS):
            self._picture(host)
        else:
            self._crawl_file()

    do_HEAD = do_GET  # noqa: N815

    def _crawl_file(self) -> None:
        wanted = unquote(urlsplit(self.path).path).lstrip("/").replace("\0", "")
        path = (self.server.root / wanted).resolve()
        if not path.is_relative_to(self.server.root) or not path.is_file():
            self._send(404, b"no such file\n", "text/plain")
            return
        self._send_content(path.read_bytes(), _type(path.name), path.stat().st_mtime)

    def _picture(self, host: str) -> None:
        answer = self.server.routes.get(host, {}).get(self.path)
        if answer is None:
            self._send(404, b"no such picture\n", "text/plain")
            return
        content = self.server.pictures.read(answer["file"]) if "file" in answer else b""
        headers: dict[str, str] = answer.get("headers", {})
        kind = answer.get("type") or _type(answer.get("file", ""))
        behave = self._behaviours.get(answer.get("do", ""))
        if behave is not None:
            self.close_connection = True
            behave(self, content)
        elif "location" in answer:
            self._send(answer["status"], b"", kind, {"Location": answer["location"], **headers})
        elif "status" in answer:
            body = content or f"status {answer['status']}\n".encode()
            self._send(answer["status"], body, kind, headers)
        else:
            self._send_content(content, kind, _CHANGED, headers)

    def _send_content(
        self, content: bytes, kind: str, changed: float, headers: dict[str, str] | None = None
    ) -> None:
        """Answer 200, 206 for one range, 304 for the same ETag, or 416."""
        about = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            "Last-Modified": formatdate(changed, usegmt=True),
            "Accept-Ranges": "bytes",
            **(headers or {}),
        }
        if about["ETag"] in self.headers.get("If-None-Match", ""):
            self._send(304, b"", kind, about)
            return
        wanted = self.headers.get("Range")
        if wanted is None or wanted.count(",") or not wanted.startswith("bytes="):
            self._send(200, content, kind, about)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        try:
            start = int(first) if first else max(0, len(content) - int(last))
            end = min(int(last), len(content) - 1) if first and last else len(content) - 1
        except ValueError:
            self._send(200, content, kind, about)
            return
        if start >= len(content) or end < start:
            self._send(416, b"", kind, {"Content-Range": f"bytes */{len(content)}"})
            return
        about["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], kind, about)

    def _send(
        self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        if status != 304:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)

    def _headers(self, length: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def _drip(self, content: bytes) -> None:
        """Send 16 bytes every fifth of a second: no read times out, but the body never ends."""
        self._headers(len(content))
        for at in range(0, len(content), 16):
            self.wfile.write(content[at : at + 16])
            if self.server.stopping.wait(0.2):
                return

    def _silent(self, _: bytes) -> None:
        """Never answer; give up long after any client has hung up."""
        self.server.stopping.wait(30)

    def _endless(self, content: bytes) -> None:
        """Send a picture, then zeros as fast as they are taken."""
        self._headers(None)
        for block in self._until_stopped(itertools.chain([content], itertools.repeat(_BLOCK))):
            self.wfile.write(block)

    def _huge(self, content: bytes) -> None:
        """Declare 64 MB, and send them as long as the client takes them."""
        size = 64 * 1024 * 1024
        self._headers(size)
        blocks = itertools.chain([content], itertools.repeat(_BLOCK, size // len(_BLOCK)))
        for block in self._until_stopped(blocks):
            self.wfile.write(block)

    def _cut(self, content: bytes) -> None:
        """Close the connection in the middle of the promised body."""
        self._headers(len(content))
        self.wfile.write(content[: len(content) // 2])

    def _garbage(self, _: bytes) -> None:
        """Answer with something other than HTTP."""
        self.wfile.write(b"this is not HTTP\r\n\r\n")

    def _until_stopped(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        deadline = time.monotonic() + 30
        for block in blocks:
            if self.server.stopping.is_set() or time.monotonic() > deadline:
                return
            yield block

    _behaviours: ClassVar[dict[str, Callable[[_Handler, bytes], None]]] = {
        "drip": _drip,
        "silent": _silent,
        "endless": _endless,
        "huge": _huge,
        "cut": _cut,
        "garbage": _garbage,
    }


def _type(name: str) -> str:
    return _TYPES.get(Path(name).suffix.lower(), "application/octet-stream")
