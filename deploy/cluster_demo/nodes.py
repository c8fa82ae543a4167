"""Ray on one host: a head and several nodes, each with its own processes, address and folders."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from deploy.cluster_demo.postgres import free_port

MARK: Final = "LAION_ASSETS_CLUSTER_DEMO"
"""Environment variable of each process that the demo starts: the machine it belongs to."""

_RUN: Final = re.compile(r'run_id": "([0-9a-f-]{36})"')
_PATIENCE_S: Final = 180.0


class ClusterError(RuntimeError):
    """The cluster does not start or makes no progress; the message says where to look."""


def processes(mark: str) -> Iterator[int]:
    """Yield the processes of one machine, whatever group or session they are in."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:  # ended, or another user's
            continue


def kill(mark: str) -> int:
    """Send SIGKILL to all processes of a machine; return their number."""
    killed: set[int] = set()
    while new := set(processes(mark)) - killed:
        for process in new:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        killed |= new
        time.sleep(0.2)
    return len(killed)


@dataclass(frozen=True)
class Cluster:
    """A running Ray cluster."""

    head: str
    jobs_address: str
    nodes: tuple[str, ...]
    """Marks of the nodes, which are also their names."""

    def runs(self) -> dict[str, str]:
        """Nodes by the id of the Dagster run that each works on."""
        found = {}
        for node in self.nodes:
            for process in processes(node):
                try:
                    command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                match = _RUN.search(command.replace("\\", "")) if "execute_run" in command else None
                if match:
                    found[match[1]] = node
        return found


def _ray(*arguments: str, mark: str, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), "start", *arguments, "--block"],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **env, MARK: mark},
        )


@contextmanager
def running(
    name: str, count: int, settings: Mapping[str, Mapping[str, str]], work: Path
) -> Iterator[Cluster]:
    """Start a head that takes no runs and ``count`` nodes that take one run each.

    ``settings`` has each machine's environment by its mark: ``{name}#head``, ``{name}#1``, …
    Raises :class:`ClusterError`.
    """
    port, dashboard = free_port(), free_port()
    head, nodes = f"{name}#head", tuple(f"{name}#{number}" for number in range(1, count + 1))
    jobs = f"http://127.0.0.1:{dashboard}"
    common = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        # A lost host is noticed within some ten seconds instead of thirty.
        "RAY_health_check_period_ms": "2000",
        "RAY_health_check_timeout_ms": "4000",
        "RAY_health_check_failure_threshold": "3",
    }
    try:
        _ray(
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--num-cpus=0",
            "--object-store-memory=100000000",
            "--include-dashboard=true",
            f"--dashboard-port={dashboard}",
            f"--temp-dir={work}/ray",
            mark=head,
            env={**common, **settings[head]},
            log=work / "ray.log",
        )
        _await(partial(_has, jobs, 1), work)
        for number, node in enumerate(nodes):
            _ray(
                f"--address=127.0.0.1:{port}",
                f"--node-ip-address=127.0.0.{number + 2}",
                "--num-cpus=1",
                "--object-store-memory=100000000",
                mark=node,
                env={**common, **settings[node]},
                log=work / "ray.log",
            )
            # One by one: nodes that start at once on one host have been seen to miss each other.
            _await(partial(_has, jobs, number + 2), work)
        yield Cluster(head, jobs, nodes)
    finally:
        for mark in (*nodes, head):
            kill(mark)


def _alive(address: str) -> int:
    """Number of live nodes, including the head; 0 while the head does not answer."""
    try:
        with urllib.request.urlopen(f"{address}/nodes?view=summary", timeout=5) as answer:
            nodes = json.load(answer)["data"]["summary"]
    except (urllib.error.URLError, OSError, KeyError, ValueError):
        return 0
    return sum(node.get("raylet", {}).get("state") == "ALIVE" for node in nodes)


def _has(address: str, count: int) -> bool:
    return _alive(address) >= count


def _await(true: Callable[[], bool], work: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise ClusterError(f"Ray did not start within {_PATIENCE_S:.0f} s: see {work}/ray.log")
        time.sleep(0.5)
