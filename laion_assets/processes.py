"""Ends child processes with their parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def signal_at_parents_end(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends. Raises ``OSError``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, of process id ``parent``, dies.

    Exits with 1 if the parent has died already.
    """
    signal_at_parents_end(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
