"""Decide which addresses may be connected to, and look names up without a gap for DNS rebinding.

The rules follow IANA's special-purpose address registries (RFC 6890). Python's ``is_global``
follows them in part; it takes multicast, 6to4 and NAT64 for global.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice, zip_longest
from typing import Final

from cachetools import LRUCache

from laion_assets.download.errors import FetchRefused

Resolve = Callable[[str], Sequence[str]]
"""A name -> its addresses, as text; raises ``OSError`` if it has none. Called in threads."""

MAX_ADDRESSES: Final = 3
"""Addresses of a name that are tried: each may take a socket until its connection times out."""
CACHE_SECONDS: Final = 300.0
CACHE_NAMES: Final = 20_000
DNS_THREADS: Final = 128

_NEVER_V4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # "this network": 0.0.0.0 reaches loopback on Linux
        "100.64.0.0/10",  # carrier-grade NAT
        "168.63.129.16/32",  # Azure's host agent, on a public address
        "192.0.0.0/24",  # protocol assignments; Oracle Cloud's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarking
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")  # all that IANA has allocated as global
_NEVER_V6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 carries an IPv4 address that its relay would reach
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether the address is a global unicast one.

    An IPv4 address inside an IPv6 one (IPv4-mapped, the well-known NAT64 prefix) is judged by
    itself. Text that is not an address, or has a scope id, is not public.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        return ip in _GLOBAL_V6 and ip.is_global and not any(ip in net for net in _NEVER_V6)
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _NEVER_V4)


def parse_endpoint(text: str) -> tuple[str, int]:
    """``(address, port)`` of `127.0.0.1:80` or `[::1]:80`.

    Raises ``ValueError`` for anything else: a name would be looked up, which an entry is to avoid.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} is not IP:PORT")
    try:
        return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
    except ValueError as error:
        raise ValueError(f"{text!r} is not IP:PORT") from error


def system_resolve(host: str) -> list[str]:
    """Addresses of a name by the system's resolver. Raises ``OSError`` if it has none."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


@dataclass(frozen=True)
class _Answer:
    addresses: tuple[str, ...]
    problem: str | None
    expires: float


class Names:
    """Resolves a URL's host and port to addresses that may be connected to.

    Every address of a name must be public: a name that mixes public and internal addresses is
    refused. Answers, good and bad, are kept for a while; each use judges them again.
    """

    def __init__(
        self,
        resolve: Resolve,
        connect_to: Mapping[str, str],
        allowed: Callable[[str], bool],
        limit_s: float = math.inf,
        threads: int = DNS_THREADS,
    ) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._connect_to = {
            pattern.lower(): parse_endpoint(endpoint) for pattern, endpoint in connect_to.items()
        }
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dns")
        self._answers = LRUCache[str, _Answer](CACHE_NAMES)
        self._asking: dict[str, asyncio.Future[_Answer]] = {}
        self._limit_s = limit_s
        self._begun: dict[str, float] = {}

    def close(self) -> None:
        """Give up all look-ups."""
        for asked in list(self._asking.values()):
            asked.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def forget_failures(self) -> None:
        """Forget the names that had no address, so that they are looked up again."""
        for host in [host for host, answer in self._answers.items() if answer.problem]:
            del self._answers[host]

    def may_connect(self, address: str, port: int) -> bool:
        """Whether a connection may be opened: the last check, whatever led to the address."""
        return self._allowed(address) or (address, port) in self._connect_to.values()

    def refuse_address(self, address: str) -> None:
        """Raise :class:`FetchRefused` unless a URL may hold this address."""
        if not self._allowed(address):
            raise FetchRefused("private_address", f"{address} is not a public address")

    async def endpoints(self, host: str, port: int) -> list[tuple[str, int]]:
        """Addresses and ports of a host name. Raises :class:`FetchRefused`.

        A look-up may take ``limit_s`` from its start; waiting for a free thread does not count.
        """
        host = host.lower().rstrip(".")
        named = [pattern for pattern in self._connect_to if fnmatchcase(host, pattern)]
        if named:
            return [self._connect_to[max(named, key=_specific)]]
        if host == "invalid" or host.endswith(".invalid"):
            raise FetchRefused("dns", f"{host}: no such name, by RFC 6761")
        answer = await self._ask(host)
        if answer.problem is not None:
            raise FetchRefused("dns", f"{host}: {answer.problem}")
        for address in answer.addresses:
            if not self._allowed(address):
                raise FetchRefused("private_address", f"{host} is at {address}, not public")
        return [(address, port) for address in _tried(answer.addresses)]

    async def _ask(self, host: str) -> _Answer:
        known = self._answers.get(host)
        if known is not None and known.expires > time.monotonic():
            return known
        if host not in self._asking:
            asked = asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host)
            self._asking[host] = asked
            asked.add_done_callback(lambda done: self._keep(host, done))
        looking = self._asking[host]
        while not looking.done():
            left = self._begun.get(host, time.monotonic()) + self._limit_s - time.monotonic()
            if left <= 0:
                return _Answer((), f"no answer in {self._limit_s:g} s", time.monotonic())
            # Not cancelled: others wait for the same answer, or will need it later.
            await asyncio.wait({looking}, timeout=None if math.isinf(left) else left)
        return looking.result()

    def _keep(self, host: str, done: asyncio.Future[_Answer]) -> None:
        del self._asking[host]
        self._begun.pop(host, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._answers[host] = done.result()

    def _look_up(self, host: str) -> _Answer:
        self._begun[host] = time.monotonic()
        try:
            addresses = tuple(self._resolve(host))
            problem = None if addresses else "no address"
        except (OSError, UnicodeError) as error:
            addresses, problem = (), str(error) or type(error).__name__
        return _Answer(addresses, problem, time.monotonic() + CACHE_SECONDS)


def _specific(pattern: str) -> tuple[bool, int]:
    return "*" not in pattern, len(pattern)


def _tried(addresses: Sequence[str]) -> list[str]:
    """The first addresses, of both families in turn, so that one that does not work here is not
    all that is tried."""
    families = [[a for a in addresses if (":" in a) == six] for six in (False, True)]
    if addresses and ":" in addresses[0]:
        families.reverse()
    in_turn = (address for pair in zip_longest(*families) for address in pair if address)
    return list(islice(in_turn, MAX_ADDRESSES))
