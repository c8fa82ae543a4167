"""Rate limits per client."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_MOST_CLIENTS: Final = 20_000
_HOME_NETWORK: Final = 64  # bits of the IPv6 prefix that a provider gives to one customer


class Rate:
    """A token bucket per client: ``burst`` requests at once, refilled at ``rate`` per second.

    When there are too many clients to remember, the least recently seen are forgotten.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> int | None:
        """Take a token; return None, or the seconds to wait if there is none."""
        now = self._clock()
        left, since = self._buckets.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - since) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return None if allowed else max(1, math.ceil((1 - left) / self._rate))


def client_of(address: str) -> str:
    """Name of the client at an address: the IPv4 address, or the network of an IPv6 address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, _HOME_NETWORK), strict=False))
    return str(ip)
