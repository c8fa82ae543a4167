"""Fetching a WAT file from a server with the moods of Common Crawl's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from laion_assets.crawl import source as module
from laion_assets.crawl.source import CrawlSource, CrawlSourceError, CrawlSourceOptions
from laion_assets.crawl.transfer import Throttle
from tests.processes import until

WAT = bytes(range(256)) * 4000
ETAG = '"one"'


@dataclass
class Mood:
    """What the server does with one request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body after which the connection breaks."""
    ranges: bool = True
    etag: str = ETAG


class Server:
    """Serves one file; the next request meets the next mood, the last of them stays."""

    def __init__(self, moods: list[Mood]) -> None:
        self.ranges: list[str | None] = []
        """The Range field of each request."""
        self.times: list[float] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                mood = moods.pop(0) if len(moods) > 1 else moods[0]
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                outer.times.append(time.monotonic())
                body, status, more = WAT, mood.status, dict(mood.headers)
                if status != 200:
                    body = b"<Error><Code>SlowDown</Code></Error>"
                elif asked and mood.ranges and self.headers.get("If-Range") == mood.etag:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    body, status = WAT[start:], 206
                    more["Content-Range"] = f"bytes {start}-{len(WAT) - 1}/{len(WAT)}"
                self.send_response(status)
                more |= {"Content-Length": str(len(body)), "ETag": mood.etag}
                for name, value in more.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: mood.cut])
                if mood.cut is not None:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Serve = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(module, "_THROTTLE", Throttle())
    servers: list[Server] = []

    def serve(*moods: Mood) -> Server:
        servers.append(Server(list(moods)))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def fetch(server: Server, folder: Path, **options: float) -> bytes:
    values = {"data_url": server.url, "attempts": 2, "back_off_s": 0.01, **options}
    CrawlSource(CrawlSourceOptions.model_validate(values)).fetch("a.warc.wat.gz", folder / "a.gz")
    return (folder / "a.gz").read_bytes()


def test_a_broken_transfer_goes_on_where_it_broke(serve: Serve, tmp_path: Path) -> None:
    breaks = [Mood(cut=300_000), *(Mood(cut=100_000) for _ in range(5)), Mood()]
    server = serve(*breaks)
    assert fetch(server, tmp_path) == WAT
    assert server.ranges[:3] == [None, "bytes=300000-", "bytes=400000-"]
    assert len(server.ranges) == 7, "an attempt that got somewhere does not count"


@pytest.mark.parametrize(
    "again", [Mood(ranges=False), Mood(etag='"two"')], ids=["no ranges", "another file"]
)
def test_what_cannot_go_on_starts_anew(serve: Serve, tmp_path: Path, again: Mood) -> None:
    server = serve(Mood(cut=300_000), again)
    assert fetch(server, tmp_path) == WAT
    assert server.ranges == [None, "bytes=300000-"]


@pytest.mark.parametrize("status", [403, 429, 503])
def test_a_source_that_asks_for_fewer_requests_is_waited_for(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    server = serve(*(Mood(status) for _ in range(4)), Mood())
    with caplog.at_level(logging.WARNING):
        assert fetch(server, tmp_path) == WAT
    assert len(server.ranges) == 5, "more than the attempts for other errors"
    assert f"answered {status}: no requests for" in caplog.text
    waits = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert all(wait >= least for wait, least in zip(waits, (0.01, 0.02, 0.04, 0.08), strict=True))


@pytest.mark.parametrize("named", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_retry_after_is_honoured(serve: Serve, tmp_path: Path, named: Callable[[], str]) -> None:
    server = serve(Mood(503, {"Retry-After": named()}), Mood())
    fetch(server, tmp_path)
    assert server.times[1] - server.times[0] >= 0.9


def test_an_absurd_retry_after_is_none(serve: Serve, tmp_path: Path) -> None:
    never = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
    server = serve(*(Mood(503, {"Retry-After": never}) for _ in range(3)), Mood())
    assert fetch(server, tmp_path) == WAT


def test_the_whole_process_waits(serve: Serve, tmp_path: Path) -> None:
    asks, other = serve(Mood(429, {"Retry-After": "1"}), Mood()), serve(Mood())
    thread = Thread(target=fetch, args=(asks, tmp_path / "1"))
    thread.start()
    until(lambda: asks.times)
    time.sleep(0.1)
    fetch(other, tmp_path / "2")
    thread.join()
    assert other.times[0] - asks.times[0] >= 0.9


def test_patience_ends(serve: Serve, tmp_path: Path) -> None:
    server = serve(Mood(503))
    with pytest.raises(CrawlSourceError, match=r"a\.warc\.wat\.gz.* answered 503"):
        fetch(server, tmp_path, patience_s=0.2)
    assert len(server.ranges) > 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [(404, FileNotFoundError, 1), (400, CrawlSourceError, 1), (500, CrawlSourceError, 2)],
)
def test_other_answers_are_errors(
    serve: Serve, tmp_path: Path, status: int, error: type[Exception], requests: int
) -> None:
    server = serve(Mood(status))
    with pytest.raises(error):
        fetch(server, tmp_path)
    assert len(server.ranges) == requests
    assert not list(tmp_path.iterdir())
