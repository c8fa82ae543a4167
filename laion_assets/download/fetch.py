"""Fetch a stranger's URL without being led anywhere else.

aiohttp on asyncio: a total deadline is one cancellation, however slowly the host sends, and
thousands of waiting requests need no threads. aiohttp's connector takes our resolver and our socket
factory. So the addresses are looked up once, judged, and judged again in the call that opens the
socket.

Ports: 80, 443 and those from 1024 up. The others belong to mail, file and log-in services, which a
URL could otherwise be made to speak to.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

import ada_url
import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from laion_assets.download.addresses import (
    MAX_ADDRESSES,
    Names,
    Resolve,
    is_public,
    system_resolve,
)
from laion_assets.download.bodies import Inflater, content_codings
from laion_assets.download.errors import ON_A_LIST, FetchRefused, HostBusy
from laion_assets.download.heads import MAX_FIELDS, MAX_HEAD_BYTES, LenientConnector
from laion_assets.download.hosts import Host, Hosts, retry_after_s
from laion_assets.download.opt_out import opted_out
from laion_assets.download.options import DownloadOptions
from laion_assets.download.priority_semaphore import PrioritySemaphore
from laion_assets.download.robots import MAX_BYTES as ROBOTS_MAX_BYTES
from laion_assets.download.robots import Robots
from laion_assets.files import open_files

_RETRIED: Final = frozenset({"connect", "timeout", "http_5xx"})
"""Reasons that may no longer apply in a second."""

_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of this machine, which no stranger's URL can cause. EADDRNOTAVAIL is none: any address of
a kind that this machine does not have, as IPv6 where it is switched off, gives it."""
_OPEN_FILES_BESIDE: Final = 256

_HOST_FAILED: Final = frozenset({"connect", "timeout"})
_NOT_OF_THE_HOST: Final = frozenset({"dns", "private_address"})
_BUSY: Final = (429, 503)
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_WEB_PORTS: Final = (80, 443)
_FIRST_FREE_PORT: Final = 1024
_KEEP_ALIVE_S: Final = 2.0
_CHUNK: Final = 64 * 1024
_GOOD: Final = (200, 203)
"""Statuses with which the whole image comes; 203 says that a proxy has changed it (RFC 9110)."""


@dataclass(frozen=True)
class Fetched:
    """A body that came with a good status, its content decoded; ``redirects`` led to ``url``."""

    body: bytes
    status: int
    url: str
    content_type: str
    redirects: tuple[str, ...]


@dataclass(frozen=True)
class _Redirect:
    url: str


@dataclass(frozen=True)
class _Target:
    """A URL that may be fetched, as a browser reads it: no user, password or fragment."""

    url: str
    host: str
    origin: str
    has_name: bool
    """Whether the host is a name, not an address."""


class Fetcher:
    """Guarded GET requests; use as an ``async with`` context, on one event loop.

    ``resolve`` looks names up and ``allowed`` says which addresses may be connected to; both are
    parameters for tests, and for sites with their own resolver. ``listed`` gets every URL before
    it is fetched, redirects included, and returns the reason to refuse it, or None.
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
        self.answers = 0
        """Responses that have begun to arrive; whatever they say, the network works."""
        self._slots = PrioritySemaphore(options.concurrency)
        self._hosts = Hosts(options)
        self._robots = (
            Robots(options.user_agent, self._robots_txt) if options.respect_robots_txt else None
        )

    async def __aenter__(self) -> Fetcher:
        options = self.options
        # One socket for each address that is tried, and one for a connection that is kept.
        _have_open_files((MAX_ADDRESSES + 1) * options.concurrency + _OPEN_FILES_BESIDE)
        self._names = Names(
            self._resolve, options.connect_to, self._allowed, options.total_timeout_s
        )
        connector = LenientConnector(
            largest_body=max(options.max_bytes, ROBOTS_MAX_BYTES),
            resolver=_Resolver(self._names),
            socket_factory=self._open_socket,
            use_dns_cache=False,
            ssl=_trusting(options.ca_file),
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
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_FIELDS,
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
        """Yield the body at ``url``; until the block ends it counts among the limits of requests.

        So no more bodies than requests, in all and of one host, wait for a slower next step. Raises
        :class:`FetchRefused`.
        """
        async with AsyncExitStack() as held:
            yield await self._with_retries(url, held)

    def decoded(self, fetched: Fetched, seconds: float) -> None:
        """Count the seconds that a body of :meth:`fetching`'s block took its decoder."""
        self._hosts.decoded(self._hosts.held(ada_url.URL(fetched.url).hostname), seconds)

    @property
    def has_free_slot(self) -> bool:
        """Whether the hosts' limits leave some of ``concurrency`` unused."""
        return self._slots.free > 0

    def forget_failures(self) -> None:
        """Give names and hosts that failed another chance."""
        self._names.forget_failures()
        self._hosts.forget()

    async def _with_retries(self, url: str, held: AsyncExitStack) -> Fetched:
        options = self.options
        retries, busy_retries, wait = options.retries, options.busy_retries, options.retry_wait_s
        last_busy: HostBusy | None = None
        while True:
            try:
                return await self._attempt(url, held)
            except HostBusy as busy:
                last_busy = busy
                busy_retries -= 1
                if busy_retries < 0 or (busy.wait_s or 0) > options.longest_wait_s:
                    raise
                # The next try comes after the host's wait, as for its other images.
            except FetchRefused as refused:
                if not refused.asked and last_busy is not None:
                    raise last_busy from refused  # the answer to this image's own request
                retries -= 1
                if refused.reason not in _RETRIED or retries < 0:
                    raise
                await asyncio.sleep(wait)
                wait *= 2

    async def _attempt(
        self, url: str, held: AsyncExitStack, *, robots_txt: bool = False
    ) -> Fetched:
        """Try once, with one deadline over all hops; ``held`` gets the body's slots."""
        loop = asyncio.get_running_loop()
        left = self.options.total_timeout_s
        hops: list[str] = []
        for _ in range(self.options.max_redirects + 1):
            try:
                target = self._target(url)
            except FetchRefused as refused:
                refused.redirects = tuple(hops)
                raise
            delay = 0.0
            if self._robots is not None and not robots_txt:
                delay = await self._robots.ask(target.origin, target.url)
            # One host's slot at a time, or two redirects could wait for each other.
            async with AsyncExitStack() as hop:
                host = await hop.enter_async_context(self._hosts.slot(target.host))
                await self._wait_for_turn(target, host, delay)
                hop.callback(self._slots.release)
                started = loop.time()
                try:
                    async with asyncio.timeout(left):
                        answer = await self._ask(target, tuple(hops), robots_txt)
                    self._hosts.answered(host)
                except HostBusy as busy:
                    self._hosts.busy(host, busy, started)
                    raise
                except FetchRefused as refused:
                    if refused.reason in _HOST_FAILED:
                        self._hosts.failed(host)
                    elif refused.reason not in _NOT_OF_THE_HOST:
                        self._hosts.answered(host)
                    raise
                except TimeoutError as error:
                    self._hosts.failed(host)
                    detail = f"not done in {self.options.total_timeout_s:g} s"
                    raise FetchRefused("timeout", detail) from error
                if isinstance(answer, Fetched):
                    held.push_async_exit(hop.pop_all())
                    return answer
            left -= loop.time() - started
            url = answer.url
            hops.append(as_asked(url))
        raise FetchRefused("redirects", f"over {self.options.max_redirects} redirects")

    async def _wait_for_turn(self, target: _Target, host: Host, delay: float) -> None:
        """Wait for the name, the host and a slot, which the caller then holds.

        The name comes first, before the image's time runs: resolvers take long over dead names,
        and that wait is not the fault of a host.
        """
        if target.has_name:
            await self._names.endpoints(target.host, 0)
        while True:
            await self._hosts.until_open(host)
            await self._slots.acquire(urgency=host.users)
            try:
                if self._hosts.begin(host, delay):
                    return
            except BaseException:
                self._slots.release()
                raise
            self._slots.release()

    async def _robots_txt(self, url: str) -> bytes:
        async with AsyncExitStack() as held:
            return (await self._attempt(url, held, robots_txt=True)).body

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
            raise FetchRefused(reason, ON_A_LIST)
        has_name = parsed.host_type == ada_url.HostType.DEFAULT
        if not has_name:
            self._names.refuse_address(parsed.hostname.strip("[]"))
        port = int(parsed.port or 80)
        if port < _FIRST_FREE_PORT and port not in _WEB_PORTS:
            raise FetchRefused("connect", f"port {port} is not one of the web's")
        origin = f"{parsed.protocol}//{parsed.host}"
        return _Target(parsed.href, parsed.hostname, origin, has_name)

    def _open_socket(self, info: tuple[object, ...]) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        address, port = cast("tuple[str, int]", sockaddr)[:2]
        if not self._names.may_connect(address, port):
            raise FetchRefused("private_address", f"{address} is not a public address")
        return socket.socket(cast(int, family), cast(int, kind), cast(int, protocol))

    async def _ask(
        self, target: _Target, hops: tuple[str, ...], robots_txt: bool
    ) -> Fetched | _Redirect:
        """Make one request. Raises :class:`FetchRefused`, and ``TimeoutError`` at the deadline."""
        try:
            request = self._session.get(URL(target.url, encoded=True), allow_redirects=False)
            async with request as response:
                self.answers += 1
                if response.status in _REDIRECTS:
                    return _Redirect(_location(response, target.url))
                self._accept(response, robots_txt)
                body = await self._body(response, robots_txt)
                return Fetched(body, response.status, target.url, response.content_type, hops)
        except aiohttp.ConnectionTimeoutError as error:
            seconds = self.options.connect_timeout_s
            raise FetchRefused("connect", f"no connection in {seconds:g} s") from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise FetchRefused("tls", _cause(error)) from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            if getattr(error, "errno", None) in _OURS:
                raise OSError(error.errno, f"this machine cannot connect: {error}") from error  # type: ignore[union-attr]
            raise FetchRefused("connect", _cause(error)) from error
        except (FetchRefused, TimeoutError, MemoryError):
            raise
        except OSError as error:
            if error.errno in _OURS:
                raise
            raise FetchRefused("connect", _cause(error)) from error
        except Exception as error:
            # A stranger's answer may surprise the library, too: refuse this image.
            raise FetchRefused("http_other", _cause(error)) from error

    def _accept(self, response: aiohttp.ClientResponse, robots_txt: bool) -> None:
        """Refuse by status, the host's wishes and declared size, before the body is read."""
        status = response.status
        if status in _BUSY:
            value = response.headers.get("Retry-After", "").strip()
            detail = f"HTTP {status}" + (f", Retry-After: {value}" if value else "")
            raise HostBusy(detail, retry_after_s(value))
        if status not in _GOOD:
            kind = {4: "http_4xx", 5: "http_5xx"}.get(status // 100, "http_other")
            raise FetchRefused(kind, f"HTTP {status}")
        if robots_txt:
            return
        if self.options.respect_opt_out:
            wishes = response.headers.getall("X-Robots-Tag", [])
            directive = opted_out(wishes, self.options.user_agent)
            if directive is not None:
                raise FetchRefused("opt_out", f"X-Robots-Tag: {directive}")
        if (response.content_length or 0) > self.options.max_bytes:
            raise FetchRefused("too_large", f"{response.content_length} bytes declared")

    async def _body(self, response: aiohttp.ClientResponse, robots_txt: bool) -> bytes:
        limit = ROBOTS_MAX_BYTES if robots_txt else self.options.max_bytes
        codings = content_codings(",".join(response.headers.getall("Content-Encoding", [])))
        inflaters = [Inflater(coding, limit, cut=robots_txt) for coding in reversed(codings)]
        body = bytearray()
        received = 0
        async for chunk in response.content.iter_chunked(_CHUNK):
            received += len(chunk)
            for inflater in inflaters:
                chunk = inflater.add(chunk)
            body += chunk
            if max(len(body), received) > limit:
                if robots_txt:  # the rest is ignored
                    return bytes(body[:limit])
                raise FetchRefused("too_large", f"over {limit} bytes")
        left = b""
        for inflater in inflaters:
            left = inflater.add(left) + inflater.end()
        return bytes(body + left)


def _have_open_files(n: int) -> None:
    """Raise this process's limit of open files to ``n``.

    Raises ``ValueError`` if the system allows fewer: the failures would look like dead hosts.
    """
    allowed = open_files(n)
    if allowed < n:
        raise ValueError(
            f"[download] concurrency needs {n:,} open files and this process may have "
            f"{allowed:,}: lower it, or raise the limit (ulimit -n)"
        )


@functools.cache
def _trusting(ca_file: str) -> ssl.SSLContext:
    """A context that verifies certificates and names; cached, because reading the CAs is slow."""
    return ssl.create_default_context(cafile=ca_file or None)


def as_asked(url: str) -> str:
    """The URL in the form of requests and lists; text that is not a URL is returned unchanged."""
    try:
        parsed = ada_url.URL(url)
        parsed.username = parsed.password = parsed.hash = ""
    except ValueError:  # not a URL, or one without a host, which has no user either
        return url
    return str(parsed.href)


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
        """Do nothing: no resources are held."""


def _location(response: aiohttp.ClientResponse, base: str) -> str:
    location = response.headers.get("Location", "")
    if not location:
        raise FetchRefused("http_other", f"HTTP {response.status} without Location")
    try:
        return str(ada_url.join_url(base, location))
    except ValueError as error:
        raise FetchRefused("http_other", "Location is not a valid URL") from error


def _cause(error: Exception) -> str:
    """The error's text, or the text of the system's error inside it."""
    inner = getattr(error, "os_error", None) or error
    return f"{type(error).__name__}: {inner}"
