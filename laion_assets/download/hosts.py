"""How much one host is asked for, and when it is left alone.

Each host has its slots and its rate. A host that says "too many" (429, 503) is not asked again
before the time it names. One that fails several times in a row is not asked for a while: its other
images fail at once, as ``host_down``, instead of keeping slots busy until a time-out each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from laion_assets.download.options import DownloadOptions
from laion_assets.download.refused import FetchRefused, HostBusy

_SWEEP_AT_LEAST: Final = 10_000
_MOST_DOUBLINGS: Final = 10


@dataclass
class Host:
    """What is known of one host; times are those of the event loop's clock."""

    slots: asyncio.Semaphore
    users: int = 0
    next_start: float = 0.0
    """When the rate, or the host's own wish, allows the next request."""
    failures: int = 0
    """In a row, until now."""
    busy_since: float = 0.0
    """When it last said "too many"."""
    down_until: float = 0.0
    why: str = ""

    def refuse_if_down(self, now: float) -> None:
        if now < self.down_until:
            raise FetchRefused("host_down", self.why)

    def idle(self, now: float) -> bool:
        """Whether a new one would do as well."""
        busy = self.users or self.failures
        return not busy and self.next_start <= now and self.down_until <= now


class Hosts:
    """All hosts that are being asked; those about which there is nothing to know are forgotten."""

    def __init__(self, options: DownloadOptions) -> None:
        self._options = options
        self._interval = 1 / options.per_host_rate if options.per_host_rate else 0.0
        self._hosts: dict[str, Host] = {}
        self._sweep_at = _SWEEP_AT_LEAST

    @asynccontextmanager
    async def turn(self, name: str, interval: float = 0.0) -> AsyncIterator[Host]:
        """Wait until the host may be asked, and keep one of its slots until the block ends.

        ``interval``: seconds between two requests, where the host itself wants more than the
        options. Raises :class:`FetchRefused` if the host is to be left alone.
        """
        loop = asyncio.get_running_loop()
        host = self._get(name, loop.time())
        host.users += 1
        try:
            host.refuse_if_down(loop.time())
            async with host.slots:
                host.refuse_if_down(loop.time())
                start = max(loop.time(), host.next_start)
                host.next_start = start + max(interval, self._interval)
                while (left := start - loop.time()) > 0:
                    await asyncio.sleep(left)
                    host.refuse_if_down(loop.time())
                yield host
        finally:
            host.users -= 1
            if host.idle(loop.time()):
                self._hosts.pop(name, None)

    def failed(self, host: Host, why: str = "it failed") -> None:
        """No connection, or no answer in time."""
        limit = self._options.host_failures
        host.failures += 1
        if limit and host.failures >= limit:
            pause = self._options.host_pause_s
            host.down_until = asyncio.get_running_loop().time() + pause
            host.why = f"not asked for {pause:g} s: {why}, {host.failures} times in a row"

    def busy(self, host: Host, told: HostBusy, started: float) -> None:
        """429 or 503 to a request of the time ``started``: all wait, as long as the host says.

        Where it does not say, twice as long each time. Answers to requests that were under way
        together count once.
        """
        now = asyncio.get_running_loop().time()
        if started >= host.busy_since:
            host.busy_since = now
            self.failed(host, told.detail)
        wait = told.wait_s
        if wait is None:
            wait = self._options.retry_wait_s * 2.0 ** min(host.failures - 1, _MOST_DOUBLINGS)
        if wait > self._options.longest_wait_s:
            host.down_until = max(host.down_until, now + wait)
            host.why = f"not asked again: {told.detail}"
        else:
            host.next_start = max(host.next_start, now + wait)

    def answered(self, host: Host) -> None:
        host.failures = 0

    def forget(self) -> None:
        """Give every host another chance."""
        for host in self._hosts.values():
            host.failures, host.down_until = 0, 0.0

    def _get(self, name: str, now: float) -> Host:
        host = self._hosts.get(name)
        if host is None:
            if len(self._hosts) >= self._sweep_at:
                self._hosts = {key: kept for key, kept in self._hosts.items() if not kept.idle(now)}
                self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self._hosts))
            host = self._hosts[name] = Host(asyncio.Semaphore(self._options.per_host_concurrency))
        return host
