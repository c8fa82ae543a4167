"""Fetching a stranger's URL without being led anywhere else.

aiohttp on asyncio: a total deadline is one cancellation, whatever the host drips, and thousands of
waiting requests cost no threads. Its connector takes a resolver and a socket factory of ours, so
the addresses are looked up once, judged, and judged again in the very call that opens the socket.

Ports: 80, 443 and those from 1024 up. The others belong to mail, file and log-in services that a
URL could be made to speak to.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import weakref
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

import ada_url
import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from laion_assets.download.addresses import Names, Resolve, is_public, system_resolve
from laion_assets.download.opt_out import opted_out
from laion_assets.download.options import DownloadOptions
from laion_assets.download.refused import FetchRefused

PASSING: Final = frozenset({"connect", "timeout", "http_5xx"})
"""Reasons that may be gone at the next try."""

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_WEB_PORTS: Final = (80, 443)
_FIRST_FREE_PORT: Final = 1024
_KEEP_ALIVE_S: Final = 2.0
_CHUNK: Final = 64 * 1024
_ANY_ZLIB: Final = 47  # gzip or zlib, by its header


@dataclass(frozen=True)
class Fetched:
    """A body that came with status 200, content decoded."""

    body: bytes
    status: int
    url: str
    content_type: str
    redirects: int


@dataclass(frozen=True)
class _Redirect:
    url: str


@dataclass(frozen=True)
class _Target:
    """A URL that may be asked for, as a browser reads it: no user, password or fragment."""

    url: str
    host: str


class Fetcher:
    """Guarded GET requests; open as an ``async with`` context, on one event loop.

    ``resolve`` looks names up, ``allowed`` says which addresses may be connected to; both are
    parameters for tests and for hosts with a resolver of their own. ``listed`` is told every URL
    before it is asked for, redirects too, and gives the reason if it must not be.
    """

    def __init__(
        self,
        options: DownloadOptions,
        *,
        resolve: Resolve = system_resolve,
        allowed: Callable[[str], bool] = is_public,
        listed: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.options = options
        self._listed = listed
        self._resolve = resolve
        self._allowed = allowed
        self._slots = asyncio.Semaphore(options.concurrency)
        self._hosts: weakref.WeakValueDictionary[str, asyncio.Semaphore] = (
            weakref.WeakValueDictionary()
        )

    async def __aenter__(self) -> Fetcher:
        options = self.options
        self._names = Names(self._resolve, options.connect_to, self._allowed)
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(self._names),
            socket_factory=self._open_socket,
            use_dns_cache=False,
            ssl=_trusting(options.ca_file),
            limit=0,  # the limits are the semaphores here, whose waiting takes no image's time
            keepalive_timeout=_KEEP_ALIVE_S,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=options.connect_timeout_s, ceil_threshold=float("inf")
            ),
            headers={
                "User-Agent": options.user_agent_header,
                "Accept": "image/jpeg,image/png,image/webp,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._names.close()

    async def fetch(self, url: str) -> Fetched:
        """The body at ``url``. Raises :class:`FetchRefused`."""
        async with self.fetching(url) as fetched:
            return fetched

    @asynccontextmanager
    async def fetching(self, url: str) -> AsyncIterator[Fetched]:
        """The same, counted among the ``concurrency`` at work until the block ends.

        So bodies that wait for a slower next step are as few as the requests.
        """
        fetched = await self._with_retries(url)
        try:
            yield fetched
        finally:
            self._slots.release()

    async def _with_retries(self, url: str) -> Fetched:
        wait = self.options.retry_wait_s
        for _ in range(self.options.retries):
            try:
                return await self._attempt(url)
            except FetchRefused as refused:
                if refused.reason not in PASSING:
                    raise
            await asyncio.sleep(wait)
            wait *= 2
        return await self._attempt(url)

    async def _attempt(self, url: str) -> Fetched:
        """One try, with one deadline over all hops; holds a slot when it returns."""
        loop = asyncio.get_running_loop()
        left = self.options.total_timeout_s
        for hop in range(self.options.max_redirects + 1):
            target = self._target(url)
            # One host's slot at a time, or two redirects could wait for one another.
            async with self._host_slot(target.host):
                await self._slots.acquire()
                started = loop.time()
                answer: Fetched | _Redirect | None = None
                try:
                    async with asyncio.timeout(left):
                        answer = await self._ask(target, hop)
                except TimeoutError as error:
                    seconds = self.options.total_timeout_s
                    raise FetchRefused("timeout", f"not done in {seconds:g} s") from error
                finally:
                    if not isinstance(answer, Fetched):
                        self._slots.release()
            if isinstance(answer, Fetched):
                return answer
            left -= loop.time() - started
            url = answer.url
        raise FetchRefused("redirects", f"over {self.options.max_redirects} redirects")

    def _host_slot(self, host: str) -> asyncio.Semaphore:
        slot = self._hosts.get(host)
        if slot is None:
            slot = self._hosts[host] = asyncio.Semaphore(self.options.per_host_concurrency)
        return slot

    def _target(self, url: str) -> _Target:
        try:
            parsed = ada_url.URL(url)
        except ValueError as error:
            raise FetchRefused("url_scheme", f"not a valid URL: {url}") from error
        # The browser's parser has turned decimal, octal and hex hosts into plain addresses.
        if parsed.protocol not in ("http:", "https:"):
            raise FetchRefused("url_scheme", f"{parsed.protocol} is not http: or https:")
        parsed.username = parsed.password = parsed.hash = ""
        reason = self._listed(parsed.href)
        if reason is not None:
            raise FetchRefused(reason, f"{parsed.href} or its host is on a list")
        if parsed.host_type != ada_url.HostType.DEFAULT:
            self._names.refuse_address(parsed.hostname.strip("[]"))
        port = int(parsed.port or 80)
        if port < _FIRST_FREE_PORT and port not in _WEB_PORTS:
            raise FetchRefused("connect", f"port {port} is not one of the web's")
        return _Target(parsed.href, parsed.hostname)

    def _open_socket(self, info: tuple[object, ...]) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        address, port = cast("tuple[str, int]", sockaddr)[:2]
        if not self._names.may_connect(address, port):
            raise FetchRefused("private_address", f"{address} is not a public address")
        return socket.socket(cast(int, family), cast(int, kind), cast(int, protocol))

    async def _ask(self, target: _Target, hop: int) -> Fetched | _Redirect:
        """One request. Raises :class:`FetchRefused`, and ``TimeoutError`` at the deadline."""
        try:
            request = self._session.get(URL(target.url, encoded=True), allow_redirects=False)
            async with request as response:
                if response.status in _REDIRECTS:
                    return _Redirect(_location(response, target.url))
                self._accept(response)
                body = await self._body(response)
                return Fetched(body, response.status, target.url, response.content_type, hop)
        except aiohttp.ConnectionTimeoutError as error:
            seconds = self.options.connect_timeout_s
            raise FetchRefused("connect", f"no connection in {seconds:g} s") from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise FetchRefused("tls", _cause(error)) from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise FetchRefused("connect", _cause(error)) from error
        except (FetchRefused, TimeoutError, MemoryError):
            raise
        except Exception as error:
            # A stranger's answer may surprise the library too: that costs this image, by name.
            raise FetchRefused("http_other", _cause(error)) from error

    def _accept(self, response: aiohttp.ClientResponse) -> None:
        """Refuse by status, wish of the host and declared size, before the body is read."""
        status = response.status
        if status != 200:
            kind = {4: "http_4xx", 5: "http_5xx"}.get(status // 100, "http_other")
            raise FetchRefused(kind, f"HTTP {status}")
        if self.options.respect_opt_out:
            wishes = response.headers.getall("X-Robots-Tag", [])
            directive = opted_out(wishes, self.options.user_agent)
            if directive is not None:
                raise FetchRefused("opt_out", f"X-Robots-Tag: {directive}")
        if (response.content_length or 0) > self.options.max_bytes:
            raise FetchRefused("too_large", f"{response.content_length} bytes declared")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding in ("", "identity"):
            inflate = None
        elif encoding in ("gzip", "x-gzip", "deflate"):
            inflate = zlib.decompressobj(_ANY_ZLIB)
        else:
            raise FetchRefused("http_other", f"Content-Encoding {encoding} was not asked for")
        limit = self.options.max_bytes
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            if inflate is not None:
                try:
                    body += inflate.decompress(chunk, limit + 1 - len(body))
                except zlib.error as error:
                    raise FetchRefused("http_other", f"Content-Encoding: {error}") from error
            else:
                body += chunk
            if len(body) > limit:
                raise FetchRefused("too_large", f"over {limit} bytes")
        if inflate is not None and not inflate.eof:
            raise FetchRefused("connect", "the compressed body ended early")
        return bytes(body)


@functools.cache
def _trusting(ca_file: str) -> ssl.SSLContext:
    """Certificates and names are verified; made once, because reading the CAs takes a while."""
    return ssl.create_default_context(cafile=ca_file or None)


class _Resolver(AbstractResolver):
    def __init__(self, names: Names) -> None:
        self._names = names

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - both are welcome
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=to_port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address, to_port in await self._names.endpoints(host, port)
        ]

    async def close(self) -> None:
        """Nothing is held here."""


def _location(response: aiohttp.ClientResponse, base: str) -> str:
    location = response.headers.get("Location", "")
    if not location:
        raise FetchRefused("http_other", f"HTTP {response.status} without Location")
    try:
        return str(ada_url.join_url(base, location))
    except ValueError as error:
        raise FetchRefused("http_other", "Location is not a valid URL") from error


def _cause(error: Exception) -> str:
    """The error's text, or that of the system's error inside it."""
    inner = getattr(error, "os_error", None) or error
    return f"{type(error).__name__}: {inner}"
