"""Other threads and processes of a test: waiting for what they do, their ports, their ends."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 120.0
"""After so long what a test waits for counts as never coming: a busy machine takes seconds."""


def until(condition: Callable[[], object], what: str = "it", every_s: float = 0.02) -> None:
    """Wait until something is true; fail if that does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE_S:.0f} s"
        time.sleep(every_s)


def alive(pid: int) -> bool:
    """Whether the process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has taken."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")


def below(pid: int) -> list[int]:
    """The processes that one has started, and those that these have."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return []
    return [one for child in map(int, listed) for one in (child, *below(child))]


def free_port() -> int:
    """A port of this machine that nobody listens to now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def served(port: int) -> bool:
    """Whether a port of this machine takes connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
