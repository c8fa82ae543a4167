"""Locks of folders that one process at a time works in."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from laion_assets.files import LockedError, locked


def lock_of(folder: Path) -> Path:
    """The lock beside a folder, which is there before the folder is."""
    return folder.with_name(f".{folder.name}.lock")


def unlocked(paths: Iterable[Path], idle_s: float) -> Iterator[Path]:
    """Yield the folders that no process holds and that have not changed for ``idle_s`` seconds.

    Each is locked until the next one is asked for.
    """
    for folder in sorted(paths):
        with suppress(FileNotFoundError, LockedError):
            if not folder.is_dir() or time.time() - folder.stat().st_mtime < idle_s:
                continue
            with locked(lock_of(folder), lambda: None, 0):
                yield folder
