"""Processes that do not outlive the one they work for, and what they do with memory."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys

import pytest

from tests.processes import alive, until

CHILD = """
import sys, time
from laion_assets import work

if sys.argv[1] == "elsewhere":
    work._kernel_signals = lambda number: False
work.signal_at_parents_end(int(sys.argv[2]))
print("watching", flush=True)
time.sleep(300)
"""
PARENT = """
import subprocess, sys, time

child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("system", ["linux", "elsewhere"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(system: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, "-c", CHILD, system, str(int(number))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    until(lambda: not alive(pid), "the child's end")


FAULTS = """
import resource, sys
import numpy as np
from laion_assets.work import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("refused")
for number in range(22):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.libc_ver()[1] < "2.36",
    reason="earlier versions of mallopt may refuse",
)
def test_freed_memory_is_kept_on_request() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    assert faults("kept") < 100 < faults("given back")
