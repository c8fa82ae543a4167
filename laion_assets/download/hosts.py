"""Limits for each host: how much it is asked for, and when it is left alone.

Each host has its slots and its rate. A host that says "too many" (429, 503) gets no request before
the time that it names. A host that fails several times in a row, or names a time too far away, is
left alone for a while: its other images fail at once, as ``host_down`` or ``busy``, instead of each
holding a slot until its time-out. A picture holds its host's slot until it is decoded, and a long
decode delays the host's next request, so that no host has the decoders for itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from laion_assets.download.errors import FetchRefused, HostBusy
from laion_assets.download.options import DownloadOptions

_SWEEP_AT_LEAST: Final = 10_000
_MOST_DOUBLINGS: Final = 10
_ORDINARY_DECODE_S: Final = 0.1
"""Ten times what an ordinary picture takes."""


def retry_after_s(value: str) -> float | None:
    """Seconds to wait by a Retry-After header, which is seconds or a date (RFC 9110, 10.2.3).

    None if the header is empty or cannot be read.
    """
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


@dataclass
class Host:
    """State of one host; times are seconds of the event loop's clock."""

    slots: asyncio.Semaphore
    users: int = 0
    """Images that hold or wait for one of its slots."""
    next_start: float = 0.0
    """When the rate, or the host's own wish, allows the next request."""
    failures: int = 0
    """Consecutive failures, up to now."""
    decode_s: float = 0.0
    """CPU seconds that its last picture took."""
    slow_pictures: int = 0
    """Consecutive pictures, up to now, that were decoded for longer than an answer may take."""
    last_failed: float = 0.0
    busy_since: float = 0.0
    """When it last said "too many"."""
    down_until: float = 0.0
    """Until when it is left alone because it failed too often."""
    closed_until: float = 0.0
    """Until when it is left alone because it asked for too long a wait."""
    why: str = ""
    """Why it is left alone."""

    def refuse_if_down(self, now: float) -> None:
        """Raise :class:`FetchRefused` while the host is left alone."""
        if now < max(self.down_until, self.closed_until):
            reason = "busy" if now < self.closed_until else "host_down"
            refused = FetchRefused(reason, self.why)
            refused.asked = False
            raise refused

    def urgency(self) -> int:
        """How many of its images wait; fewer by as much as its pictures are costlier than usual.

        So a host cannot have the decoders before all others by many pictures that take them long.
        """
        return int(self.users * min(1.0, _ORDINARY_DECODE_S / max(self.decode_s, 1e-9)))

    def idle(self, now: float, failures_kept_s: float) -> bool:
        """Whether there is nothing to remember: a new object would do as well."""
        waits = max(self.next_start, self.down_until, self.closed_until)
        failed = (self.failures or self.slow_pictures) and now < self.last_failed + failures_kept_s
        return not (self.users or failed) and waits <= now


class Hosts:
    """All hosts in use; idle ones are forgotten."""

    def __init__(self, options: DownloadOptions) -> None:
        self._options = options
        self._interval = 1 / options.per_host_rate if options.per_host_rate else 0.0
        self._hosts: dict[str, Host] = {}
        self._sweep_at = _SWEEP_AT_LEAST

    @asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[Host]:
        """Hold one of the host's slots until the block ends.

        Raises :class:`FetchRefused` while the host is left alone.
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
        """Wait until the host's rate, and its own wish, allow a request; both may change meanwhile.

        Raises :class:`FetchRefused` while the host is left alone.
        """
        loop = asyncio.get_running_loop()
        host.refuse_if_down(loop.time())
        while (left := host.next_start - loop.time()) > 0:
            await asyncio.sleep(left)
            host.refuse_if_down(loop.time())

    def begin(self, host: Host, interval: float = 0.0) -> bool:
        """Claim the host's next request for the caller; return False if it must wait again.

        ``interval``: seconds between two requests, if the host wants more than the options. Raises
        :class:`FetchRefused` while the host is left alone.
        """
        now = asyncio.get_running_loop().time()
        host.refuse_if_down(now)
        if now < host.next_start:
            return False
        host.next_start = now + max(interval, self._interval)
        return True

    def failed(self, host: Host, why: str = "it failed") -> None:
        """Note that there was no connection, or no answer in time."""
        host.failures += 1
        self._leave_after(host, host.failures, why)

    def decoded(self, host: Host, seconds: float) -> None:
        """Note how long a picture of the host took its decoder.

        The host's next request waits as long as decoding took longer than usual. A picture that
        took longer than an answer may take counts as a failure of the host.
        """
        host.decode_s = seconds
        longer = seconds - _ORDINARY_DECODE_S
        if longer > 0:
            now = asyncio.get_running_loop().time()
            host.next_start = max(host.next_start, now) + longer
        if seconds > self._options.total_timeout_s:
            host.slow_pictures += 1
            self._leave_after(host, host.slow_pictures, f"a picture took {seconds:.0f} s to decode")
        else:
            host.slow_pictures = 0

    def _leave_after(self, host: Host, times: int, why: str) -> None:
        limit = self._options.host_failures
        host.last_failed = asyncio.get_running_loop().time()
        if limit and times >= limit:
            pause = self._options.host_pause_s
            host.down_until = host.last_failed + pause
            host.why = f"not asked for {pause:g} s: {why}, {times} times in a row"

    def busy(self, host: Host, answer: HostBusy, started: float) -> None:
        """Note a 429 or 503 to a request of the time ``started``.

        All requests wait as long as the host says, or twice as long each time if it does not say.
        Answers to requests that were under way together count once.
        """
        now = asyncio.get_running_loop().time()
        if started >= host.busy_since:
            host.busy_since = now
            self.failed(host, answer.detail)
        wait = answer.wait_s
        if wait is None:
            wait = self._options.retry_wait_s * 2.0 ** min(host.failures - 1, _MOST_DOUBLINGS)
        if wait > self._options.longest_wait_s:
            host.closed_until = max(host.closed_until, now + wait)
            host.why = f"not asked again: {answer.detail}"
        else:
            host.next_start = max(host.next_start, now + wait)

    def answered(self, host: Host) -> None:
        """Note an answer, which ends a row of failures."""
        host.failures = 0

    def forget(self) -> None:
        """Give every failed host another chance; a wait that a host has asked for stays."""
        for host in self._hosts.values():
            host.failures, host.down_until = 0, 0.0

    def held(self, name: str) -> Host:
        """The host of a slot that is held."""
        return self._hosts[name]

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
