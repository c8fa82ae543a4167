"""robots.txt (RFC 9309), parsed by Protego and kept for each origin.

A missing robots.txt (4xx, or too many redirects) allows everything. An answer that leaves it open
(5xx, 429) forbids everything for the time being (RFC 9309, 2.3.1): its images fail with the same
reason, as do those of a host that cannot be reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from protego import Protego

from laion_assets.download.errors import FetchRefused

MAX_BYTES: Final = 512_000  # at least 500 KiB must be parsed (RFC 9309, 2.5)
_KEPT_S: Final = 24 * 3600.0  # RFC 9309, 2.4
_FAILURE_KEPT_S: Final = 300.0
_KEPT: Final = 20_000
_KEPT_BYTES: Final = 10_000_000
_MOST_DELAY_S: Final = 10.0
_ALLOWING: Final = frozenset({"http_4xx", "redirects"})


@dataclass(frozen=True)
class _Rules:
    expires: float
    parsed: Protego | None = None
    """The rules; None if everything is allowed."""
    refused: FetchRefused | None = None
    """The refusal of every URL of the origin, if any."""
    size: int = 0
    """Bytes of the text; parsed, it takes some thirty times as many."""


class Robots:
    """The rules of all origins.

    ``get`` fetches a robots.txt of at most :data:`MAX_BYTES`, or raises :class:`FetchRefused`.
    """

    def __init__(self, agent: str, get: Callable[[str], Awaitable[bytes]]) -> None:
        self._agent = agent
        self._get = get
        self._rules: dict[str, asyncio.Future[_Rules]] = {}
        self._bytes = 0

    async def ask(self, origin: str, url: str) -> float:
        """The host's Crawl-delay in seconds: 0 if it has none, and at most 10.

        ``origin``: "https://host:port". Raises :class:`FetchRefused` if ``url`` is disallowed.
        """
        rules = await self._of(origin)
        if rules.refused is not None:
            raise FetchRefused(rules.refused.reason, rules.refused.detail)
        if rules.parsed is None:
            return 0.0
        if not rules.parsed.can_fetch(url, self._agent):
            raise FetchRefused("robots", f"{origin}/robots.txt disallows it")
        # Not in the RFC, and some hosts ask for hours: a shard does not wait that long.
        return min(rules.parsed.crawl_delay(self._agent) or 0.0, _MOST_DELAY_S)

    async def _of(self, origin: str) -> _Rules:
        loop = asyncio.get_running_loop()
        known = self._rules.get(origin)
        if known is not None and known.done() and known.result().expires < loop.time():
            self._drop(origin)
            known = None
        if known is None:
            known = self._rules[origin] = loop.create_task(self._load(origin))
            known.add_done_callback(lambda done: self._loaded(origin, done))
            if len(self._rules) > _KEPT:
                self._drop(next(iter(self._rules)))
        # Shielded: cancelling one image must not take the answer from the others.
        return await asyncio.shield(known)

    def _loaded(self, origin: str, done: asyncio.Future[_Rules]) -> None:
        if done.cancelled() or done.exception() or self._rules.get(origin) is not done:
            return
        self._bytes += done.result().size
        while self._bytes > _KEPT_BYTES and len(self._rules) > 1:
            self._drop(next(iter(self._rules)))

    def _drop(self, origin: str) -> None:
        dropped = self._rules.pop(origin)
        if dropped.done() and not dropped.cancelled() and not dropped.exception():
            self._bytes -= dropped.result().size

    async def _load(self, origin: str) -> _Rules:
        now = asyncio.get_running_loop().time()
        try:
            body = await self._get(f"{origin}/robots.txt")
        except FetchRefused as refused:
            if refused.reason in _ALLOWING:
                return _Rules(now + _KEPT_S)
            refused = FetchRefused(refused.reason, f"robots.txt: {refused.detail}")
            return _Rules(now + _FAILURE_KEPT_S, refused=refused)
        try:
            return _Rules(
                now + _KEPT_S, Protego.parse(body.decode("utf-8", "replace")), size=len(body)
            )
        except Exception as error:  # noqa: BLE001 - a stranger's text may raise anything: refuse that host
            unreadable = FetchRefused("http_other", f"robots.txt cannot be read: {error!r}")
            return _Rules(now + _FAILURE_KEPT_S, refused=unreadable)
