"""Files that are mapped into memory, and whether they still are as long as they were.

Reading a mapped file beyond its end kills the process (SIGBUS). Nothing cuts a published file, but
a disk or a person may. To look at each file's length costs a microsecond.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path


class IndexDamagedError(RuntimeError):
    """A file of an index is not as it was written; the message says which."""


class MappedFiles:
    """Files that are mapped as they are now, and stay open for looking at them."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: list[tuple[Path, int, int]] = []
        weakref.finalize(self, _close, self._files)
        for path in paths:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files.append((path, handle, os.fstat(handle).st_size))

    def check(self) -> None:
        """Raise :class:`IndexDamagedError` if one is shorter than it was."""
        for path, handle, size in self._files:
            now = os.fstat(handle).st_size
            if now < size:
                raise IndexDamagedError(f"{path} was cut from {size:,} to {now:,} bytes")


def _close(files: list[tuple[Path, int, int]]) -> None:
    for _, handle, _ in files:
        os.close(handle)
