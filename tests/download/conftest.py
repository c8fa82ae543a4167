"""A small web on loopback: 127.0.0.2 is the public internet, all other addresses are internal."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

from laion_assets import schemas
from laion_assets.download.errors import FetchRefused
from laion_assets.download.fetch import Fetcher
from laion_assets.download.options import DownloadOptions
from laion_assets.download.requester import Fetched
from laion_assets.download.segment import download_segment
from laion_assets.download.summary import Downloaded
from laion_assets.funnel import StageCounts
from laion_assets.removals.entries import Entries

PUBLIC = "127.0.0.2"
INSIDE = "127.0.0.1"

Answer = Callable[[socket.socket], None]


def answer(
    body: bytes = b"", status: str = "200 OK", length: int | None = None, **headers: str
) -> Answer:
    """A whole answer; ``X_Robots_Tag="noai"`` sends the header X-Robots-Tag."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode()
    return lambda connection: connection.sendall(head + body)


def redirect(to: str, status: str = "302 Found") -> Answer:
    return answer(status=status, Location=to)


@dataclass
class Listener:
    """Accepts connections in threads until closed, counting them."""

    address: str
    port: int = 0
    connections: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Host header and path."""
    heads: list[str] = field(default_factory=list)
    routes: dict[str, Answer] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self._socket = socket.create_server((self.address, self.port), family=family, backlog=64)
        self.port = self._socket.getsockname()[1]
        self.closing = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        if self._socket.fileno() >= 0:  # a test may have closed it
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                if self.tls is not None:
                    connection = self.tls.wrap_socket(connection, server_side=True)
                with connection:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        received = connection.recv(4096)
                        if not received:
                            return
                        head += received
                    lines = head.decode("latin-1").split("\r\n")
                    path = lines[0].split(" ")[1]
                    host = next(line[6:] for line in lines if line.lower().startswith("host: "))
                    with self._lock:
                        self.requests.append((host, path))
                        self.heads.append(head.decode("latin-1"))
                    self.routes.get(path, answer(status="404 Not Found"))(connection)
        except (OSError, ssl.SSLError):
            return  # the client went away

    def until_closed(self, connection: socket.socket, block: bytes, every: float = 0.0) -> None:
        while not self.closing.wait(every):
            connection.sendall(block)


@contextmanager
def listening(address: str, port: int = 0, **settings: Any) -> Iterator[Listener]:
    listener = Listener(address, port, **settings)
    try:
        yield listener
    finally:
        listener.close()


@pytest.fixture
def web() -> Iterator[Listener]:
    """The public web: every name resolves to it unless a test says otherwise."""
    with listening(PUBLIC, _free_port()) as listener:
        yield listener


def _free_port() -> int:
    """A port that is free on both addresses; other tests' servers may use one of them."""
    for _ in range(50):
        with socket.create_server((INSIDE, 0)) as first:
            port = int(first.getsockname()[1])
            try:
                socket.create_server((PUBLIC, port)).close()
            except OSError:
                continue
        return port
    raise RuntimeError("no port is free on both addresses")


@pytest.fixture
def inside(web: Listener) -> Iterator[Listener]:
    """An internal server on the web's port; the test fails if anything connects to it."""
    with listening(INSIDE, web.port) as listener:
        yield listener
        assert listener.connections == 0


def get(
    url: str,
    options: DownloadOptions | None = None,
    *,
    resolve: Callable[[str], list[str]] = lambda _: [PUBLIC],
    times: int = 1,
) -> Fetched:
    """Fetch ``times`` in turn with one fetcher; return the last answer."""

    async def run() -> Fetched:
        fetcher = Fetcher(
            options or DownloadOptions(total_timeout_s=5),
            resolve=resolve,
            allowed=lambda address: address == PUBLIC,
        )
        async with fetcher:
            for _ in range(times - 1):
                await fetcher.fetch(url)
            return await fetcher.fetch(url)

    return asyncio.run(run())


def reasons(urls: list[str], options: DownloadOptions | None = None) -> dict[str, str]:
    """URL -> its body, or the reason of its refusal; fetched all at once by one fetcher."""

    async def one(fetcher: Fetcher, url: str) -> str:
        try:
            return (await fetcher.fetch(url)).body.decode()
        except FetchRefused as refusal:
            return refusal.reason

    async def run() -> list[str]:
        fetcher = Fetcher(
            options or DownloadOptions(),
            resolve=lambda _: [PUBLIC],
            allowed=lambda address: address == PUBLIC,
        )
        async with fetcher:
            return await asyncio.gather(*(one(fetcher, url) for url in urls))

    return dict(zip(urls, asyncio.run(run()), strict=True))


def picture(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Soft noise, which compresses like a photo: over 5,000 bytes in every format."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1))


def encoded(image: Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def write_pairs(path: Path, urls: list[str]) -> None:
    rows = [
        {
            "uid": schemas.uid_of(url, f"picture {i}"),
            "url": url,
            "text": f"picture {i}",
            "language": "en",
            "language_score": 0.9,
            "license": "?",
            "page_url": "http://pages.test/",
            "crawl": "CC-MAIN-2024-10",
            "segment": "00",
            "wat_file": "a.warc.wat.gz",
        }
        for i, url in enumerate(urls)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schemas.PAIRS), path)


NONE = Entries()
N = 23
"""Pictures that the fixture `images` serves; all but three are good."""
SIZE = 5


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    return [encoded(picture(seed, 300 + seed, 200)) for seed in range(N)]


@pytest.fixture
def images(bodies: list[bytes]) -> Iterator[Listener]:
    """Serves picture i at /i.jpg, each a little late, so that the order of answers differs."""
    with listening(PUBLIC) as web:

        def late(i: int) -> None:
            def send(connection: object) -> None:
                web.closing.wait(i * 7 % 5 / 100)
                answer(bodies[i])(connection)  # type: ignore[arg-type]

            web.routes[f"/{i}.jpg"] = send

        for i in range(N):
            late(i)
        web.routes["/4.jpg"] = answer(b"gone", "404 Not Found")
        web.routes["/7.jpg"] = answer(bodies[7][:9000])
        web.routes["/8.jpg"] = answer(b"tiny")
        yield web


def options_for(web: Listener, **settings: object) -> DownloadOptions:
    values = {"samples_per_shard": SIZE, "connect_to": {"*.test": f"{PUBLIC}:{web.port}"}}
    return DownloadOptions.model_validate(values | settings)


def urls(n: int = N) -> list[str]:
    return [f"http://h{i % 3}.test/{i}.jpg" for i in range(n)]


def download(pairs: Path, out: Path, options: DownloadOptions, **given: Any) -> Downloaded:
    """Download without lists, unless they are given."""
    given = {"removals": NONE, "blocklists": NONE} | given
    return download_segment(pairs, out, options, **given)


def run(pairs: Path, out: Path, options: DownloadOptions, **given: Any) -> StageCounts:
    return download(pairs, out, options, **given).counts


def content(out: Path) -> dict[str, Any]:
    """Digest of each tar, rows of each parquet: those of a shard taken over are written again."""
    return {
        path.name: pq.ParquetFile(path).read().to_pylist()
        if path.suffix == ".parquet"
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.is_file() and not path.name.endswith("_stats.json")
    }
