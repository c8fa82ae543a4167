"""How much one host is asked for, and when it is left alone.

Each host has its slots and its rate. A host that says "too many" (429, 503) is not asked again
before the time it names. One that fails several times in a row is not asked for a while, nor one
that names a time too far away: its other images fail at once, as ``host_down`` or ``busy``,
instead of keeping slots busy until a time-out each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from laion_assets.download.errors import FetchRefused, HostBusy
from laion_assets.download.options import DownloadOptions

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
    last_failed: float = 0.0
    busy_since: float = 0.0
    """When it last said "too many"."""
    down_until: float = 0.0
    """Because it failed too often."""
    closed_until: float = 0.0
    """Because it asked for a longer wait than is waited for."""
    why: str = ""

    def refuse_if_down(self, now: float) -> None:
        if now < max(self.down_until, self.closed_until):
            reason = "busy" if now < self.closed_until else "host_down"
            refused = FetchRefused(reason, self.why)
            refused.asked = False
            raise refused

    def idle(self, now: float, failures_kept_s: float) -> bool:
        """Whether a new one would do as well."""
        waits = max(self.next_start, self.down_until, self.closed_until)
        failed = self.failures and now < self.last_failed + failures_kept_s
        return not (self.users or failed) and waits <= now


class Hosts:
    """All hosts that are being asked; those about which there is nothing to know are forgotten."""

    def __init__(self, options: DownloadOptions) -> None:
        self._options = options
        self._interval = 1 / options.per_host_rate if options.per_host_rate else 0.0
        self._hosts: dict[str, Host] = {}
        self._sweep_at = _SWEEP_AT_LEAST

    @asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[Host]:
        """Keep one of the host's slots until the block ends.

        Raises :class:`FetchRefused` if the host is to be left alone.
        """
        loop = asyncio.get_running_loop()
        host = self._get(name, loop.time())
        host.users += 1
        try:
            host.refuse_if_down(loop.time())
            async with host.slots:
                yield host
        finally:
            host.users -= 1
            if host.idle(loop.time(), self._options.host_pause_s):
                self._hosts.pop(name, None)

    async def until_open(self, host: Host) -> None:
        """Wait until the host may be asked: its rate, and its own wish, which may change meanwhile.

        Raises :class:`FetchRefused` if the host is to be left alone.
        """
        loop = asyncio.get_running_loop()
        host.refuse_if_down(loop.time())
        while (left := host.next_start - loop.time()) > 0:
            await asyncio.sleep(left)
            host.refuse_if_down(loop.time())

    def begin(self, host: Host, interval: float = 0.0) -> bool:
        """Take the host's next request for the caller's; False if it must wait again.

        ``interval``: seconds between two requests, where the host itself wants more than the
        options. Raises as :meth:`until_open`.
        """
        now = asyncio.get_running_loop().time()
        host.refuse_if_down(now)
        if now < host.next_start:
            return False
        host.next_start = now + max(interval, self._interval)
        return True

    def failed(self, host: Host, why: str = "it failed") -> None:
        """No connection, or no answer in time."""
        limit = self._options.host_failures
        host.failures += 1
        host.last_failed = asyncio.get_running_loop().time()
        if limit and host.failures >= limit:
            pause = self._options.host_pause_s
            host.down_until = host.last_failed + pause
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
            host.closed_until = max(host.closed_until, now + wait)
            host.why = f"not asked again: {told.detail}"
        else:
            host.next_start = max(host.next_start, now + wait)

    def answered(self, host: Host) -> None:
        host.failures = 0

    def forget(self) -> None:
        """Give every host that failed another chance; what one has asked for stays."""
        for host in self._hosts.values():
            host.failures, host.down_until = 0, 0.0

    def _get(self, name: str, now: float) -> Host:
        host = self._hosts.get(name)
        if host is None:
            if len(self._hosts) >= self._sweep_at:
                self._hosts = {
                    key: kept
                    for key, kept in self._hosts.items()
                    if not kept.idle(now, self._options.host_pause_s)
                }
                self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self._hosts))
            host = self._hosts[name] = Host(asyncio.Semaphore(self._options.per_host_concurrency))
        return host
