"""One contestant's run, measured from outside: a process of its own, its children included."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SAMPLE_S: Final = 0.02


@dataclass(frozen=True)
class Measured:
    seconds: float
    """Wall clock, the start of the interpreter and imports included."""
    cpu_seconds: float
    """User and system time of the process and the children it waited for."""
    peak_bytes: int
    """Largest sum of the resident memory of the process and all its descendants, sampled; pages
    that they share count for each."""
    peak_own_bytes: int
    """The same without pages of files (memory-mapped data, libraries)."""
    stdout: str


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 3600,
) -> Measured:
    """Run ``command`` to its end. ``env`` is added to this process's environment.

    Raises ``RuntimeError`` with the end of its standard error if it fails, and
    ``subprocess.TimeoutExpired`` after ``timeout_s``, when it has been killed.
    """
    before = os.times()
    started = time.monotonic()
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    ) as process:
        peak = _Peak(process.pid)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
        finally:
            peak.stop()
    seconds = time.monotonic() - started
    after = os.times()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {stderr[-2000:]}")
    cpu = after.children_user - before.children_user
    cpu += after.children_system - before.children_system
    return Measured(seconds, cpu, peak.bytes, peak.own_bytes, stdout)


class _Peak:
    """Samples the resident memory of a process tree in a thread."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self.own_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            resident, own = tree_bytes(self._pid)
            self.bytes, self.own_bytes = max(self.bytes, resident), max(self.own_bytes, own)
            if self._ended.wait(_SAMPLE_S):
                return


def tree_bytes(pid: int) -> tuple[int, int]:
    """Resident bytes of all, and those that are no file's."""
    pages, shared, waiting = 0, 0, [pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            statm = (process / "statm").read_text().split()
            for task in (process / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        pages += int(statm[1])
        shared += int(statm[2])
    size = os.sysconf("SC_PAGE_SIZE")
    return pages * size, (pages - shared) * size
