"""The image host, a separate process: ``python -m benchmarks.download.host PICTURES``.

It prints ``{"port": N}`` when it listens, and ends when its standard input does. All good hosts
and most bad ones share one socket and are distinguished by the Host header; ``web`` says how each
behaves. ``GET /`` of the host ``report`` returns what happened since the last report. Plain asyncio
protocols keep its share of the cores small, which the contestants need, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, cast

from benchmarks.download.web import BLACK_HOLE_ADDRESS, WEB_ADDRESS, Kind, kind_of, latency_s

REPORT_HOST: Final = "report"

_BACKLOG: Final = 1024
_DRIP_S: Final = 30
_DRIP_PROMISED: Final = 100_000
_TYPES: Final = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
_LONGEST_HEAD: Final = 16_384


@dataclass
class Report:
    """Counts of what clients did since the last report."""

    requests: int = 0
    connections: int = 0
    most_at_once: int = 0
    """Largest number of requests that one host was answering at the same time."""
    most_in_a_second: int = 0
    """Largest number of requests that one host received within one second of the clock."""
    cpu_seconds: float = 0.0


@dataclass
class _Site:
    pictures: list[bytes]
    """Complete answers, including their heads."""
    report: Report = field(default_factory=Report)
    at_once: Counter[str] = field(default_factory=Counter)
    in_second: Counter[tuple[str, int]] = field(default_factory=Counter)
    latencies: dict[str, float] = field(default_factory=dict)
    cpu_before: float = 0.0

    def begun(self, host: str) -> None:
        self.report.requests += 1
        self.at_once[host] += 1
        second = (host, int(time.monotonic()))
        self.in_second[second] += 1
        self.report.most_at_once = max(self.report.most_at_once, self.at_once[host])
        self.report.most_in_a_second = max(self.report.most_in_a_second, self.in_second[second])

    def ended(self, host: str) -> None:
        self.at_once[host] -= 1

    def latency(self, host: str) -> float:
        if host not in self.latencies:
            self.latencies[host] = latency_s(host)
        return self.latencies[host]

    def take_report(self) -> bytes:
        now = time.process_time()
        self.report.cpu_seconds = now - self.cpu_before
        content = json.dumps(asdict(self.report)).encode()
        self.cpu_before = now
        self.report = Report()
        self.in_second.clear()
        return _answer("200 OK", "application/json", content)


class _Connection(asyncio.Protocol):
    """HTTP/1.1 GET, one request at a time, kept alive unless the client says otherwise."""

    def __init__(self, site: _Site) -> None:
        self._site = site
        self._received = b""
        self._host: str | None = None
        self._close = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._site.report.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._timer is not None:
            self._timer.cancel()
        self._done()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _LONGEST_HEAD:
            self._transport.abort()
        elif self._host is None:
            self._next()

    def _next(self) -> None:
        head, ended, rest = self._received.partition(b"\r\n\r\n")
        if not ended:
            return
        self._received = rest
        request, *lines = head.decode("latin-1").split("\r\n")
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        host = fields.get("host", "").partition(":")[0].lower()
        self._close = fields.get("connection", "").lower() == "close"
        if host == REPORT_HOST:
            self._write(self._site.take_report())
            return
        try:
            kind, number = kind_of(host), int(request.split()[1].rpartition("/")[2])
        except (ValueError, IndexError):
            self._write(_answer("404 Not Found", "text/plain", b"not of this web\n"))
            return
        self._host = host
        self._site.begun(host)
        if kind is Kind.GOOD:
            answer = self._site.pictures[number % len(self._site.pictures)]
            self._after(self._site.latency(host), answer)
        elif kind is Kind.BUSY:
            answer = _answer("503 Service Unavailable", "text/plain", b"come back later\n")
            self._after(self._site.latency(host), answer)
        elif kind is Kind.DRIP:
            head_only = _head("200 OK", "image/jpeg", _DRIP_PROMISED)
            self._transport.write(head_only)
            self._drip(_DRIP_S)
        # Any other kind is silent: the request stays open until the client gives up.

    def _after(self, seconds: float, answer: bytes) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._write, answer)

    def _write(self, answer: bytes) -> None:
        self._timer = None
        self._transport.write(answer)
        self._done()
        if self._close:
            self._transport.close()
        elif self._received:
            self._next()

    def _drip(self, left: int) -> None:
        if left == 0:
            self._transport.close()
            return
        self._transport.write(b"\xff")
        self._timer = asyncio.get_running_loop().call_later(1, self._drip, left - 1)

    def _done(self) -> None:
        if self._host is not None:
            self._site.ended(self._host)
            self._host = None


def _head(status: str, kind: str, length: int) -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _answer(status: str, kind: str, content: bytes) -> bytes:
    return _head(status, kind, len(content)) + content


def black_hole(port: int) -> list[socket.socket]:
    """Open sockets that fill an address's queue of connections as long as they are open.

    Linux then drops further requests for a connection, as a firewall does. Raises ``RuntimeError``
    if a connection is still accepted.
    """
    listening = socket.socket()
    listening.bind((BLACK_HOLE_ADDRESS, port))
    listening.listen(0)
    held = [listening]
    for _ in range(8):
        waiting = socket.socket()
        waiting.settimeout(0.3)
        held.append(waiting)
        try:
            waiting.connect((BLACK_HOLE_ADDRESS, port))
        except TimeoutError:
            return held
    raise RuntimeError("the queue of connections does not fill up")


async def _serve(site: _Site) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(site), WEB_ADDRESS, 0, backlog=_BACKLOG)
    port = server.sockets[0].getsockname()[1]
    held = black_hole(port)
    over = asyncio.Event()
    loop.add_reader(sys.stdin, over.set)
    print(json.dumps({"port": port}), flush=True)
    await over.wait()
    server.close()
    for one in held:
        one.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    args = parser.parse_args()
    pictures = [
        _answer("200 OK", _TYPES[path.suffix], path.read_bytes())
        for path in sorted(args.pictures.iterdir())
    ]
    asyncio.run(_serve(_Site(pictures)))


if __name__ == "__main__":
    main()
