"""Measurement of one contestant's run from outside: its own process with all its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SAMPLE_S: Final = 0.25
_LEAST_REST: Final = 30
"""Times as long as a look takes, up to ``_LONGEST_REST_S``: looks take a core's time."""
_LONGEST_REST_S: Final = 2.0

_REAPER: Final = """
import ctypes, os, signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
PR_SET_CHILD_SUBREAPER = 36
if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
    sys.exit("prctl failed")
code = subprocess.call(sys.argv[1:])
try:
    while True:
        os.wait()
except ChildProcessError:
    sys.exit(code if code >= 0 else 128 - code)
"""
"""Program that runs a command and then waits for all processes that it left behind.

Their CPU time would otherwise count for nobody: the processes of a pool are often not children of
the process that uses them. Signals are what they are in a terminal: started by a script in its
background, and after a run of Dagster in the same process, a benchmark has both ignored, and a
peer whose pool ends its workers by SIGTERM would wait for ever.
"""


@dataclass(frozen=True)
class Measured:
    """Time, memory and output of a run."""

    seconds: float
    """Wall-clock time, including the interpreter's start and imports."""
    cpu_seconds: float
    """User and system time of the process and all its descendants."""
    peak_bytes: int
    """Largest sampled sum of the memory of the process and all its descendants; a page that n of
    them share counts as an n-th for each."""
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
    ``subprocess.TimeoutExpired`` if it had to be killed after ``timeout_s``.
    """
    before = os.times()
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _REAPER, *(str(part) for part in command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    ) as process:
        peak = _Peak(process.pid)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
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
    """Peak of the resident memory of a process tree, sampled in a thread."""

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
            began = time.thread_time()
            resident, own = tree_bytes(*_children(self._pid))
            self.bytes, self.own_bytes = max(self.bytes, resident), max(self.own_bytes, own)
            looked = time.thread_time() - began
            if self._ended.wait(min(_LONGEST_REST_S, max(_SAMPLE_S, _LEAST_REST * looked))):
                return


def tree_bytes(*pids: int) -> tuple[int, int]:
    """Memory of the processes and all their descendants in bytes: all, and without files' pages."""
    whole, own, waiting = 0, 0, list(pids)
    while waiting:
        pid = waiting.pop()
        waiting += _children(pid)
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it has just ended
            continue
        kib = {name: int(value.split()[0]) for name, _, value in (x.partition(":") for x in rollup)}
        whole += kib.get("Pss", 0) * 1024
        own += (kib.get("Pss_Anon", 0) + kib.get("Pss_Shmem", 0)) * 1024
    return whole, own


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        pass
    return found
