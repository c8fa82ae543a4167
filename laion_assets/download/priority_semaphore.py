"""A semaphore that serves the most urgent waiter first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PrioritySemaphore:
    """``n`` slots; a free one goes to the most urgent waiter, among equals to the first.

    A plain semaphore, or a queue, would serve all hosts alike and leave the largest host for the
    end, where its rate alone would limit the download.
    """

    def __init__(self, n: int) -> None:
        self._free = n
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self._free

    @asynccontextmanager
    async def held(self, urgency: int) -> AsyncIterator[None]:
        """Hold a slot until the block ends, waiting for it if none is free."""
        await self.acquire(urgency)
        try:
            yield
        finally:
            self.release()

    async def acquire(self, urgency: int) -> None:
        """Take a slot, waiting for it if none is free."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (-urgency, next(self._order), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # the slot came too late
            raise

    def release(self) -> None:
        """Give a slot back."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
