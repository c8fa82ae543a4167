"""Fetch a stranger's URL without being led anywhere else: hops, retries, and limits.

aiohttp on asyncio: a total deadline is one cancellation, however slowly the host sends, and
thousands of waiting requests need no threads. What does not belong here: the request itself
(:mod:`.requester`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import ada_url

from laion_assets.download.addresses import (
    DNS_THREADS,
    MAX_ADDRESSES,
    Names,
    Resolve,
    is_public,
    system_resolve,
)
from laion_assets.download.errors import FetchRefused, HostBusy
from laion_assets.download.hosts import Host, Hosts
from laion_assets.download.options import DownloadOptions
from laion_assets.download.priority_semaphore import PrioritySemaphore
from laion_assets.download.requester import Fetched, Requester, Target, as_asked
from laion_assets.download.robots import Robots
from laion_assets.files import open_files

_RETRIED: Final = frozenset({"connect", "timeout", "http_5xx"})
"""Reasons that may no longer apply in a second."""

_HOST_FAILED: Final = frozenset({"connect", "timeout"})
_NOT_OF_THE_HOST: Final = frozenset({"dns", "private_address"})
_OPEN_FILES_BESIDE: Final = 256


@dataclass(frozen=True)
class Attempt:
    """One try at a URL, as far as it has come.

    ``left_s``: seconds left of its time. ``hops``: the redirects so far; the last led to ``url``.
    ``job``: what the body is for, as the caller of :meth:`Fetcher.fetching` gave it; picklable.
    """

    url: str
    left_s: float
    hops: tuple[str, ...] = ()
    robots_txt: bool = False
    job: Any = None


class Others(Protocol):
    """The other processes that fetch, each of which has hosts of its own."""

    def have(self, host: str) -> bool:
        """Whether the host is another process's."""

    async def finish(self, attempt: Attempt) -> Any:
        """Have the host's process finish the attempt; return what it made of the body.

        Of a robots.txt that is the :class:`Fetched` itself. Raises :class:`FetchRefused`.
        """


class FinishedElsewhere(Exception):  # noqa: N818 - an outcome of ordinary work, not an error of ours
    """A redirect led to another process's host; ``made`` is what that process made of the body."""

    def __init__(self, made: Any) -> None:
        self.made = made
        super().__init__("finished by another process")


class Fetcher:
    """Guarded GET requests; use as an ``async with`` context, on one event loop.

    ``resolve`` looks names up and ``allowed`` says which addresses may be connected to; both are
    parameters for tests, and for sites with their own resolver. ``listed`` gets every URL before
    it is fetched, redirects included, and returns the reason to refuse it, or None. ``others``
    finish what redirects lead to their hosts. ``dns_threads``: names looked up at the same time.
    """

    def __init__(
        self,
        options: DownloadOptions,
        *,
        resolve: Resolve = system_resolve,
        allowed: Callable[[str], bool] = is_public,
        listed: Callable[[str], str | None] = lambda _: None,
        others: Others | None = None,
        dns_threads: int = DNS_THREADS,
    ) -> None:
        self.options = options
        self._resolve, self._allowed, self._listed = resolve, allowed, listed
        self._others, self._dns_threads = others, dns_threads
        self._slots = PrioritySemaphore(options.concurrency)
        self._hosts = Hosts(options)
        self._robots = (
            Robots(options.user_agent, self._robots_txt) if options.respect_robots_txt else None
        )

    async def __aenter__(self) -> Fetcher:
        # One socket for each address that is tried, and one for a connection that is kept.
        options = self.options
        _have_open_files((MAX_ADDRESSES + 1) * options.concurrency + _OPEN_FILES_BESIDE)
        self._names = Names(
            self._resolve,
            options.connect_to,
            self._allowed,
            options.total_timeout_s,
            threads=self._dns_threads,
        )
        self._requester = Requester(options, self._names, self._listed)
        await self._requester.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._requester.__aexit__()
        self._names.close()

    @property
    def answers(self) -> int:
        """Responses that have begun to arrive; whatever they say, the network works."""
        return self._requester.answers

    async def fetch(self, url: str) -> Fetched:
        """The body at ``url``. Raises :class:`FetchRefused`."""
        async with self.fetching(url) as fetched:
            return fetched

    @asynccontextmanager
    async def fetching(self, url: str, job: Any = None) -> AsyncIterator[Fetched]:
        """Yield the body at ``url``; until the block ends it counts among the limits of requests.

        So no more bodies than requests, in all and of one host, wait for a slower next step. Raises
        :class:`FetchRefused`, and :class:`FinishedElsewhere` if there are ``others``, which get the
        ``job``.
        """
        begun = Attempt(url, self.options.total_timeout_s, job=job)
        async with AsyncExitStack() as held:
            yield await self._with_retries(begun, held)

    @asynccontextmanager
    async def finishing(self, begun: Attempt) -> AsyncIterator[Fetched]:
        """Yield the body of an attempt that another process has begun, as :meth:`fetching` does.

        Without retries: the other process begins again where it began.
        """
        async with AsyncExitStack() as held:
            yield await self._attempt(begun, held)

    def decoded(self, fetched: Fetched, seconds: float) -> None:
        """Count the seconds that a body of :meth:`fetching`'s block took its decoder."""
        self._hosts.decoded(self._host_of(fetched), seconds)

    def urgency(self, fetched: Fetched) -> int:
        """How urgent it is to decode a body of :meth:`fetching`'s block (:meth:`.Host.urgency`)."""
        return self._host_of(fetched).urgency()

    def _host_of(self, fetched: Fetched) -> Host:
        return self._hosts.held(ada_url.URL(fetched.url).hostname)

    @property
    def has_free_slot(self) -> bool:
        """Whether the hosts' limits leave some of ``concurrency`` unused."""
        return self._slots.free > 0

    def forget_failures(self) -> None:
        """Give names and hosts that failed another chance."""
        self._names.forget_failures()
        self._hosts.forget()

    async def _with_retries(self, begun: Attempt, held: AsyncExitStack) -> Fetched:
        options = self.options
        retries, busy_retries, wait = options.retries, options.busy_retries, options.retry_wait_s
        last_busy: HostBusy | None = None
        while True:
            try:
                return await self._attempt(begun, held)
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

    async def _attempt(self, begun: Attempt, held: AsyncExitStack) -> Fetched:
        """Try once, with one deadline over all hops; ``held`` gets the body's slots."""
        loop = asyncio.get_running_loop()
        url, left, hops = begun.url, begun.left_s, list(begun.hops)
        for _ in range(self.options.max_redirects + 1 - len(hops)):
            try:
                target = self._requester.target(url)
            except FetchRefused as refused:
                refused.redirects = tuple(hops)
                raise
            if self._others is not None and self._others.have(target.host):
                rest = replace(begun, url=target.url, left_s=left, hops=tuple(hops))
                raise FinishedElsewhere(await self._others.finish(rest))
            delay = 0.0
            if self._robots is not None and not begun.robots_txt:
                delay = await self._robots.ask(target.origin, target.url)
            # One host's slot at a time, or two redirects could wait for each other.
            async with AsyncExitStack() as hop:
                host = await hop.enter_async_context(self._hosts.slot(target.host))
                await self._wait_for_turn(target, host, delay)
                hop.callback(self._slots.release)
                started = loop.time()
                try:
                    async with asyncio.timeout(left):
                        answer = await self._requester.ask(target, tuple(hops), begun.robots_txt)
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

    async def _wait_for_turn(self, target: Target, host: Host, delay: float) -> None:
        """Wait for the name, the host and a slot, which the caller then holds.

        The name comes first, before the image's time runs: resolvers take long over dead names,
        and that wait is not the fault of a host.
        """
        if target.has_name:
            await self._names.endpoints(target.host, 0)
        while True:
            await self._hosts.until_open(host)
            await self._slots.acquire(host.urgency())
            try:
                if self._hosts.begin(host, delay):
                    return
            except BaseException:
                self._slots.release()
                raise
            self._slots.release()

    async def _robots_txt(self, url: str) -> bytes:
        begun = Attempt(url, self.options.total_timeout_s, robots_txt=True)
        try:
            async with self.finishing(begun) as fetched:
                return fetched.body
        except FinishedElsewhere as finished:
            elsewhere: Fetched = finished.made
            return elsewhere.body


def _have_open_files(n: int) -> None:
    """Raise this process's limit of open files to ``n``.

    Raises ``ValueError`` if the system allows fewer: the failures would look like dead hosts.
    """
    allowed = open_files(n)
    if allowed < n:
        raise ValueError(
            f"[download] concurrency / fetch_processes needs {n:,} open files and this process "
            f"may have {allowed:,}: lower concurrency, or raise the limit (ulimit -n)"
        )
