"""Long work: its processes' ends, the memory that they keep, and progress with a rate."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from types import FrameType
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
PRELOADED: Final = (
    "laion_assets.download.forkserver_preload",
    "laion_assets.pairs.forkserver_preload",
)
"""What the processes of a segment's assets import; those of pairs alone take over the others'."""
_LOOK_S: Final = 0.5


def signal_at_parents_end(number: signal.Signals) -> None:
    """Have this process get a signal when its parent ends.

    The kernel sends it, where it can (Linux). Elsewhere a thread looks for the parent every half
    second.
    """
    if not _kernel_signals(number):
        watch = (os.getppid(), number)
        threading.Thread(target=_signal_without, args=watch, name="parent", daemon=True).start()


def only_on_sigterm(number: int, frame: FrameType | None) -> None:
    """A handler of SIGTERM and SIGINT where Ctrl-C is ignored: SIGTERM is handled as Ctrl-C is."""
    if number == signal.SIGTERM:
        signal.default_int_handler(number, frame)


def ignores_ctrl_c() -> bool:
    """Whether Ctrl-C does nothing here, as in what a script starts in its background."""
    return signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, only_on_sigterm)


def forked_from_server(preloaded: Sequence[str]) -> ForkServerContext:
    """A context of multiprocessing whose processes are forked from a server, not from this one.

    This one may have threads, whose locks a copy would hold for ever. The server imports the
    modules ``preloaded`` once, passing over what is not installed. It is one for all that this
    process starts, so those of the first call count for as long as it lives.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preloaded])
    return context


def die_with_first_process(*, ignoring_ctrl_c: bool = False) -> None:
    """Have this process, which multiprocessing has started, exit with 1 when the first one ends.

    Its parent may be a fork server, which lives for as long as one of its processes.
    ``ignoring_ctrl_c``: because the first one ends this process itself, or ignores it, too:
    handlers are not inherited.
    """
    if ignoring_ctrl_c:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_first_process, name="parent", daemon=True).start()


def _exit_after_first_process() -> None:
    first = multiprocessing.parent_process()
    assert first is not None
    wait([first.sentinel])
    os._exit(1)


def _kernel_signals(number: signal.Signals) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return hasattr(libc, "prctl") and libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) == 0


def _signal_without(parent: int, number: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), number)


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed for what is allocated next, until this process ends.

    Else glibc gives larger buffers than 32 MiB, and what is free at its heap's end, back to the
    system, and a network's next layer has its pages mapped and cleared anew. False where malloc is
    another, or one of glibc that refuses.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    taken = [libc.mallopt(option, _KEPT) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)]
    return taken == [1, 1]


_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Options of mallopt(3), of which the man page says what they do."""
_KEPT: Final = 1 << 30


class Progress:
    """Counts finished items; logs ``done/total unit, rate, ETA`` at most every ``every`` seconds.

    ``resumed`` items were finished by an earlier run: they count as done, but not for the rate.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int,
        logger: logging.Logger,
        every: float = 10.0,
        resumed: int = 0,
    ) -> None:
        self._what, self._unit, self._total, self._logger = what, unit, total, logger
        self._every = every
        self._resumed = resumed
        self._started = self._last_logged = time.monotonic()
        self.done = resumed
        if resumed:
            logger.info("%s: %d/%d %s were done by an earlier run", what, resumed, total, unit)

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more items; log the line, with ``note``, if it is due."""
        self.done += n
        now = time.monotonic()
        if now - self._last_logged >= self._every or self.done >= self._total:
            self._last_logged = now
            self._logger.info(self.line(note))

    def line(self, note: str = "") -> str:
        """Return the line to log now."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self._resumed) / seconds
        left = self._total - self.done
        eta = f", about {left / rate:.0f} s left" if left > 0 and rate > 0 else ""
        extra = f"; {note}" if note else ""
        return (
            f"{self._what}: {self.done}/{self._total} {self._unit} "
            f"in {seconds:.1f} s, {rate:.1f}/s{eta}{extra}"
        )
