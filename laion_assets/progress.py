"""Progress of long work, with rate and time left, told at intervals and not at every item."""

from __future__ import annotations

import time
from collections.abc import Callable

Log = Callable[[str], None]


def silent(_: str) -> None:
    """A log that drops what it is told."""


class Progress:
    """Counts items done and logs `done/total unit, rate, ETA` at most every ``every`` seconds.

    ``resumed`` items were done by an earlier run: they count as done, not for the rate.
    """

    def __init__(
        self, what: str, unit: str, total: int, log: Log, every: float = 10.0, resumed: int = 0
    ) -> None:
        self._what, self._unit, self._total, self._log = what, unit, total, log
        self._every = every
        self._resumed = resumed
        self._started = self._told = time.monotonic()
        self.done = resumed
        if resumed:
            log(f"{what}: {resumed}/{total} {unit} were done by an earlier run")

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        if now - self._told >= self._every or self.done >= self._total:
            self._told = now
            self._log(self.line(note))

    def line(self, note: str = "") -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self._resumed) / seconds
        left = self._total - self.done
        eta = f", about {left / rate:.0f} s left" if left > 0 and rate > 0 else ""
        extra = f"; {note}" if note else ""
        return (
            f"{self._what}: {self.done}/{self._total} {self._unit} "
            f"in {seconds:.1f} s, {rate:.1f}/s{eta}{extra}"
        )
