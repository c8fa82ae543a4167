"""HTTP connections with limits: a silent one ends, and one client cannot hold them all.

uvicorn bounds neither the time for a request's head nor a client's connections, and of its own
time-outs, the one for idle connections ends at the first byte.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter, OrderedDict
from functools import partial
from typing import Any, Final

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from laion_assets.search.metrics import Metrics
from laion_assets.search.middleware import HEALTH
from laion_assets.search.options import ServeOptions
from laion_assets.search.rate_limit import client_of

_HEAD_BYTES: Final = 65_536
_FRAMING: Final = 4
"""Bytes on the wire per byte of a body: chunks may be small, but not all of one byte."""


class Connections:
    """The open connections of a server.

    A client above its share, and everybody while all connections are at work, is answered 503, on
    every path but `/healthz`. A new connection above the total ends the one that has waited longest
    for a request, first of those clients that are above their share.
    """

    def __init__(self, options: ServeOptions, metrics: Metrics) -> None:
        self.options = options
        self._metrics = metrics
        self._of_client: Counter[str] = Counter()
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._proxies = [ipaddress.ip_network(proxy) for proxy in options.proxies if proxy != "*"]
        self._any_proxy = "*" in options.proxies

    def opened(self, connection: Connection, client: str) -> bool:
        """Count a new connection; return True if it may ask for anything, False for health only."""
        self._of_client[client] += 1
        full = len(connection.connections) > self.options.connections
        if full and self._waiting:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.cut()
            full = False
        above = self._of_client[client] > self.options.client_connections
        return not (full or (above and not self._is_proxy(client)))

    def closed(self, connection: Connection, client: str) -> None:
        self._waiting.pop(connection, None)
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]

    def waits(self, connection: Connection, *, first: bool) -> None:
        """Note that a connection waits for a request's head; ``first`` is ended before others."""
        self._waiting[connection] = None
        self._waiting.move_to_end(connection, last=not first)

    def works(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer that there are too many connections. An ASGI application."""
        self._metrics.refused("connections")
        answer = JSONResponse(
            {"reason": "connections", "detail": "too many open connections; close some of yours"},
            503,
            {"Retry-After": "1", "Connection": "close"},
        )
        await answer(scope, receive, send)

    def _is_proxy(self, client: str) -> bool:
        """True for a trusted proxy, whose connections are those of many clients."""
        if self._any_proxy:
            return True
        try:
            address = ipaddress.ip_network(client)
        except ValueError:
            return False
        return any(
            address.version == proxy.version and address.subnet_of(proxy)  # type: ignore[arg-type]
            for proxy in self._proxies
        )


class Connection(HttpToolsProtocol):
    """One connection. uvicorn makes one for each that it accepts."""

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections
        self._options = connections.options
        self._of = ""
        self._is_full = True
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._received = 0
        self._in_head = True
        self._most = self._options.largest_body * _FRAMING

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._of = client_of(self.client[0] if self.client else "")
        self._is_full = self._connections.opened(self, self._of)
        if not self._is_full:
            self.app = partial(_only_health, self.app, self._connections.refuse)
        self._await_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self, self._of)
        for timer in (self._timer, self._sending):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        if self._received > (_HEAD_BYTES if self._in_head else self._most):
            self.cut()

    @override
    def on_message_begin(self) -> None:
        self._received = 0
        self._in_head = True
        super().on_message_begin()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes later are trailers, of which nobody reads any
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
        self._connections.works(self)
        super().on_headers_complete()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._await_head()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self.loop.call_later(self._options.body_timeout_s, self.cut)

    @override
    def resume_writing(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        super().resume_writing()

    def cut(self) -> None:
        """End the connection, whatever is still to be sent."""
        if self.cycle is not None:  # or it would write until it hears of the end
            self.cycle.disconnected = True
        self.transport.abort()

    def _await_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._options.idle_timeout_s, self._end)
        self._connections.waits(self, first=not self._is_full)

    def _end(self) -> None:
        """End a connection that says nothing, once it has taken the rest of its answer."""
        self.transport.close()
        self._timer = self.loop.call_later(self._options.body_timeout_s, self.cut)


async def _only_health(app: Any, refuse: Any, scope: Scope, receive: Receive, send: Send) -> None:
    await (app if scope.get("path") == HEALTH else refuse)(scope, receive, send)
