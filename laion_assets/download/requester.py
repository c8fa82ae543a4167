"""One guarded request: a URL that may be fetched, the socket, the answer, the body.

aiohttp's connector takes our resolver and our socket factory. So the addresses are looked up once,
judged, and judged again in the call that opens the socket. What does not belong here: limits,
retries, and whether a redirect is followed (:mod:`.fetch`).

Ports: 80, 443 and those from 1024 up. The others belong to mail, file and log-in services, which a
URL could otherwise be made to speak to.
"""

from __future__ import annotations

import errno
import functools
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

import ada_url
import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from laion_assets.download.addresses import Names
from laion_assets.download.bodies import Inflater, content_codings
from laion_assets.download.errors import ON_A_LIST, FetchRefused, HostBusy
from laion_assets.download.heads import MAX_FIELDS, MAX_HEAD_BYTES, LenientConnector
from laion_assets.download.hosts import retry_after_s
from laion_assets.download.opt_out import opted_out
from laion_assets.download.options import DownloadOptions
from laion_assets.download.robots import MAX_BYTES as ROBOTS_MAX_BYTES

_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of this machine, which no stranger's URL can cause. EADDRNOTAVAIL is none: any address of
a kind that this machine does not have, as IPv6 where it is switched off, gives it."""

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
class Redirect:
    """The answer names another URL."""

    url: str


@dataclass(frozen=True)
class Target:
    """A URL that may be fetched, as a browser reads it: no user, password or fragment."""

    url: str
    host: str
    origin: str
    has_name: bool
    """Whether the host is a name, not an address."""


class Requester:
    """Makes requests to the addresses of ``names``; use as an ``async with`` context.

    ``listed`` gets every URL that is to be fetched, and returns the reason to refuse it, or None.
    """

    def __init__(
        self, options: DownloadOptions, names: Names, listed: Callable[[str], str | None]
    ) -> None:
        self._options = options
        self._names = names
        self._listed = listed
        self.answers = 0
        """Responses that have begun to arrive; whatever they say, the network works."""

    async def __aenter__(self) -> Requester:
        connector = LenientConnector(
            largest_body=max(self._options.max_bytes, ROBOTS_MAX_BYTES),
            resolver=_Resolver(self._names),
            socket_factory=self._open_socket,
            use_dns_cache=False,
            ssl=_trusting(self._options.ca_file),
            keepalive_timeout=_KEEP_ALIVE_S,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=self._options.connect_timeout_s,
                ceil_threshold=float("inf"),
            ),
            headers={
                "User-Agent": self._options.user_agent_header,
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

    def target(self, url: str) -> Target:
        """What to request for a URL. Raises :class:`FetchRefused` if it may not be fetched."""
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
        return Target(parsed.href, parsed.hostname, origin, has_name)

    def _open_socket(self, info: tuple[object, ...]) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        address, port = cast("tuple[str, int]", sockaddr)[:2]
        if not self._names.may_connect(address, port):
            raise FetchRefused("private_address", f"{address} is not a public address")
        return socket.socket(cast(int, family), cast(int, kind), cast(int, protocol))

    async def ask(
        self, target: Target, hops: tuple[str, ...], robots_txt: bool
    ) -> Fetched | Redirect:
        """Make one request. Raises :class:`FetchRefused`, and ``TimeoutError`` at the deadline."""
        try:
            request = self._session.get(URL(target.url, encoded=True), allow_redirects=False)
            async with request as response:
                self.answers += 1
                if response.status in _REDIRECTS:
                    return Redirect(_location(response, target.url))
                self._accept(response, robots_txt)
                body = await self._body(response, robots_txt)
                return Fetched(body, response.status, target.url, response.content_type, hops)
        except aiohttp.ConnectionTimeoutError as error:
            seconds = self._options.connect_timeout_s
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
        if self._options.respect_opt_out:
            wishes = response.headers.getall("X-Robots-Tag", [])
            directive = opted_out(wishes, self._options.user_agent)
            if directive is not None:
                raise FetchRefused("opt_out", f"X-Robots-Tag: {directive}")
        if (response.content_length or 0) > self._options.max_bytes:
            raise FetchRefused("too_large", f"{response.content_length} bytes declared")

    async def _body(self, response: aiohttp.ClientResponse, robots_txt: bool) -> bytes:
        limit = ROBOTS_MAX_BYTES if robots_txt else self._options.max_bytes
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


def host_in(url: str) -> str:
    """The host of a URL as :class:`Target` has it; empty for text that is not a URL."""
    try:
        return str(ada_url.URL(url).hostname)
    except ValueError:
        return ""


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
