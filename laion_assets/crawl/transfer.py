"""One large file over HTTP: continued after a break, and slowly where its server asks for it.

Common Crawl's servers answer 403, 429 or 503 for minutes to whoever asks for too much, and then to
all requests of the address. So the whole process waits, not only the one transfer.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import BinaryIO, Final

import urllib3

logger = logging.getLogger(__name__)

SLOW_DOWN: Final = frozenset({403, 429, 503})
"""Statuses by which a source asks for fewer requests."""
_PIECE: Final = 1 << 20
_TIMEOUT: Final = urllib3.Timeout(connect=10, read=60)
_LONGEST_WAIT_S: Final = 300.0


class SlowDownError(Exception):
    """The server asks for fewer requests. ``wait_s``: the time it names, if it names one."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class BrokenTransferError(Exception):
    """The transfer broke. ``progress``: whether it had brought anything."""

    def __init__(self, message: str, progress: bool) -> None:
        super().__init__(message)
        self.progress = progress


class RefusedError(Exception):
    """The server refuses the request, and will again."""


class Throttle:
    """The time before which this process asks its source for nothing. Shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._waits = 0

    def wait(self) -> None:
        """Return once requests are allowed."""
        while (left := self._until - time.monotonic()) > 0:
            time.sleep(left)

    def slow_down(self, error: SlowDownError, first_wait_s: float) -> None:
        """Allow no request for as long as the server asks, else for twice as long as last time."""
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                return  # a request that was on its way when another was asked to wait
            wait = error.wait_s
            if wait is None:
                wait = min(first_wait_s * 2.0**self._waits, _LONGEST_WAIT_S)
            self._waits += 1
            self._until = now + wait
        logger.warning(f"{error}: no requests for {wait:.0f} s")

    def answered(self) -> None:
        """Note that the source serves again."""
        self._waits = 0


class Transfer:
    """The copy of one URL into an open file; each call goes on where the last one broke.

    Raises ``FileNotFoundError``, :class:`SlowDownError`, :class:`BrokenTransferError`, or
    :class:`RefusedError` for any other answer.
    """

    def __init__(self, url: str, to: BinaryIO) -> None:
        self.url, self._to = url, to
        self._validator: str | None = None
        self._got = 0

    def __call__(self) -> None:
        before = self._got
        headers = {"Accept-Encoding": "identity"}
        if self._got and self._validator:
            headers |= {"Range": f"bytes={self._got}-", "If-Range": self._validator}
        try:
            answer = _pool().request(
                "GET", self.url, headers=headers, preload_content=False, timeout=_TIMEOUT
            )
            try:
                self._take(answer)
            finally:
                answer.close()
        except urllib3.exceptions.HTTPError as error:
            message = f"{self.url}: {error}"
            raise BrokenTransferError(message, self._got > before) from error

    def _take(self, answer: urllib3.BaseHTTPResponse) -> None:
        status = answer.status
        if status == 404:
            raise FileNotFoundError(self.url)
        if status in SLOW_DOWN:
            raise SlowDownError(
                f"{self.url} answered {status}", _seconds(answer.headers.get("Retry-After"))
            )
        if status >= 500:
            raise BrokenTransferError(f"{self.url} answered {status}", progress=False)
        begins = answer.headers.get("Content-Range", "")
        if status != 206 or not begins.startswith(f"bytes {self._got}-"):
            if status != 200:
                raise RefusedError(f"{self.url} answered {status}")
            self._to.seek(0)
            self._to.truncate()
            self._got = 0
        validator = answer.headers.get("ETag", "")
        # A weak one does not say that the bytes are the same (RFC 9110, section 13.1.5).
        self._validator = None if validator.startswith("W/") else validator or None
        for piece in answer.stream(_PIECE, decode_content=False):
            self._to.write(piece)
            self._got += len(piece)


@cache
def _pool() -> urllib3.PoolManager:
    """The process's connections."""
    return urllib3.PoolManager(retries=False, maxsize=16)


def _seconds(retry_after: str | None) -> float | None:
    """The wait that a Retry-After field asks for (RFC 9110, section 10.2.3); None for no other."""
    if not retry_after:
        return None
    try:
        if retry_after.strip().isdigit():
            return min(float(retry_after), _LONGEST_WAIT_S)
        at = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), _LONGEST_WAIT_S)
