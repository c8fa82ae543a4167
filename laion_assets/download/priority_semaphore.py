"""How many images are at work at a time, and whose turn it is."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class Slots:
    """``n`` slots; a free one goes to the most urgent of those that wait, then to the first.

    A semaphore would serve all hosts alike, and leave the largest for the end, where nothing but
    its rate counts.
    """

    def __init__(self, n: int) -> None:
        self._free = n
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def free(self) -> int:
        return self._free

    async def acquire(self, urgency: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (-urgency, next(self._order), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # it came too late
            raise

    def release(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
