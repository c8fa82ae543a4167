"""What one client's connections may take from the others, over real sockets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError

from laion_assets.search.options import ServeOptions
from tests.processes import PATIENCE_S
from tests.search.conftest import FREE, Serving, SmallLake, serving

ASK = b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = (
    b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
FEW = FREE.model_copy(update={"connections": 20, "client_connections": 4})
HASTY = FREE.model_copy(update={"idle_timeout_s": 0.2, "body_timeout_s": 0.2})


def connect(served: Serving) -> socket.socket:
    address = urlsplit(served.url)
    return socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)


@contextmanager
def silent(served: Serving, n: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(served)) for _ in range(n)]


def until_closed(opened: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := opened.recv(65_536):
            received += more
    return received


@pytest.fixture(scope="module")
def hasty(small_lake: SmallLake) -> Iterator[Serving]:
    with serving(small_lake.index, small_lake.model, HASTY) as served:
        yield served


def test_silent_connections_of_one_client_shut_nobody_out(small_lake: SmallLake) -> None:
    with serving(small_lake.index, small_lake.model, FEW) as served, silent(served, 40):
        with served.another_client() as other:
            for _ in range(30):
                assert other.get("/about", headers={"Connection": "close"}).status_code == 200
        # The client itself is refused, but its machine may still look after the service.
        mine = httpx.get(f"{served.url}about", timeout=PATIENCE_S)
        assert (mine.status_code, mine.json()["reason"]) == (503, "connections")
        assert httpx.get(f"{served.url}healthz", timeout=PATIENCE_S).status_code == 200
        metrics = served.http.get("/metrics")
        assert metrics.status_code == 503


def test_a_full_service_ends_who_waits_longest(small_lake: SmallLake) -> None:
    options = FREE.model_copy(update={"connections": 5})
    with serving(small_lake.index, small_lake.model, options) as served, silent(served, 5) as held:
        assert httpx.get(f"{served.url}about", timeout=PATIENCE_S).status_code == 200
        assert until_closed(held[0]) == b""
        held[-1].sendall(ASK)
        assert held[-1].recv(12) == b"HTTP/1.1 200"


def test_a_trusted_proxy_may_hold_many(small_lake: SmallLake) -> None:
    options = FEW.model_copy(update={"proxies": ("127.0.0.0/8",)})
    with serving(small_lake.index, small_lake.model, options) as served, silent(served, 10):
        assert httpx.get(f"{served.url}about", timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /about HTT",
        ASK[:-2] + b"X: " + b"y" * 1_000,
        # The answer has been given, and the body goes on.
        b"GET /about HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx",
        ASK,
    ],
    ids=["silence", "half a line", "half a head", "half a body", "idle"],
)
def test_a_connection_without_a_request_ends(hasty: Serving, said: bytes) -> None:
    with connect(hasty) as opened:
        opened.sendall(said)
        until_closed(opened)


def test_a_dripped_head_ends(hasty: Serving) -> None:
    with connect(hasty) as opened:
        opened.settimeout(0.02)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for byte in ASK[:-2] + b"X: " + b"y" * 1_000:
                opened.sendall(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    assert opened.recv(1) == b""


def test_an_answer_that_nobody_takes_ends(hasty: Serving) -> None:
    with connect(hasty) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        ask = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        opened.sendall(ask * 8)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                opened.sendall(b"x")


@pytest.mark.parametrize(
    ("start", "flood"),
    [
        (ASK[:-2] + b"X: ", b"y" * 65_536),
        (ASK[:-2], b"X: y\r\n" * 10_000),
        (CHUNKED, b"1;" + b"e" * 60_000 + b"\r\n \r\n"),
        (CHUNKED + b"1\r\n \r\n0\r\nX: ", b"y" * 65_536),
    ],
    ids=["one long header", "many headers", "chunk extensions", "a long trailer"],
)
def test_a_flood_of_what_is_no_body_ends(small_lake: SmallLake, start: bytes, flood: bytes) -> None:
    options = FREE.model_copy(update={"max_image_bytes": 1_000})
    with (
        serving(small_lake.index, small_lake.model, options) as served,
        connect(served) as opened,
        pytest.raises((BrokenPipeError, ConnectionResetError)),
    ):
        opened.sendall(start)
        while True:
            opened.sendall(flood)


def test_a_proxys_address_is_checked() -> None:
    assert ServeOptions(proxies=("10.0.0.0/8", "::1", "*"))
    with pytest.raises(ValidationError, match="proxies"):
        ServeOptions(proxies=("my-proxy",))
