"""Dagster's services on this machine: a code server, the daemon, and the webserver with a guard.

They are what ``dagster dev`` starts, which has no place for a guard.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from laion_assets.demo.service_process import WEBSERVER

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
_MODULE: Final = "laion_assets.definitions"
_LOCATION: Final = "laion-assets"
"""The code location's name in workspace.yaml. Sensors and schedules are known by it."""
_PATIENCE_S: Final = 120.0
_GENTLE_END_S: Final = 15.0


class DemoError(RuntimeError):
    """The demo cannot continue; the message says why and where to look."""


@dataclass(frozen=True)
class Dagster:
    """Dagster's running services."""

    url: str
    since: float
    """Time of their start, in seconds since the epoch: all their runs are later."""
    processes: list[tuple[str, subprocess.Popen[bytes]]]
    """The services, by the module that runs; none if another process started them."""
    log: Path | None

    def check(self) -> None:
        """Raise :class:`DemoError` if one of them has ended."""
        for name, process in self.processes:
            if process.poll() is not None:
                raise DemoError(f"{name} exited with {process.returncode}{self._see}")
        if not self.processes and not _answers(self.url):
            raise DemoError(f"the Dagster at {self.url} has ended{self._see}")

    def watch(self) -> None:
        """Wait until interrupted. Raises :class:`DemoError` if a service ends by itself."""
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                self.check()
                time.sleep(1)

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait until the service started last is ready. Raises :class:`DemoError`."""
        deadline = time.monotonic() + _PATIENCE_S
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                name = self.processes[-1][0]
                raise DemoError(f"{name} is not ready after {_PATIENCE_S:.0f} s{self._see}")
            time.sleep(0.2)

    def end(self) -> None:
        """End the services; daemon and webserver may take some seconds to finish what they are at.

        The code server has nothing to finish, but takes long to end by itself.
        """
        code, others = self.processes[:1], self.processes[1:]
        for _, process in others:
            process.terminate()
        deadline = time.monotonic() + _GENTLE_END_S
        for name, process in others:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.info(f"{name} is slow to end and is killed")
                process.kill()
                process.wait()
        for _, process in code:
            with contextlib.suppress(ProcessLookupError):
                # Its group, if it leads one: it has a child.
                leads = os.getpgid(process.pid) == process.pid
                (os.killpg if leads else os.kill)(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def _see(self) -> str:
        return f"; see its log, {self.log}" if self.log else ""


@contextmanager
def dagster_services(
    folder: Path, home: Path, port: int, log: Path | None = None, group: int | None = None
) -> Iterator[Dagster]:
    """Run the services in ``folder`` on the instance in ``home``, in the process group ``group``.

    What they print is appended to ``log``, or stays on this process's output. Raises
    :class:`DemoError` if the port is taken or a service does not start.
    """
    _refuse_taken(port)
    dagster = Dagster(f"http://{HOST}:{port}", time.time(), [], log)

    with contextlib.ExitStack() as stack:
        # A socket's path is at most 107 bytes long, which a checkout's may exceed.
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dagster-")))
        code, workspace = private / "code", private / "workspace.yaml"
        workspace.write_text(
            f"load_from:\n- grpc_server: {{socket: {code}, location_name: {_LOCATION}}}\n"
        )
        output = stack.enter_context(log.open("ab")) if log else None

        def start(*command: str) -> None:
            starter = [sys.executable, "-m", "laion_assets.demo.service_process", str(os.getpid())]
            process = subprocess.Popen(  # noqa: S603 - our own command line
                [*starter, *command],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                # A code server of nobody's group leads one, to be killed with its child.
                process_group=0 if group is None and not dagster.processes else group,
                env=os.environ | {"DAGSTER_HOME": str(home)},
            )
            dagster.processes.append((command[0], process))

        try:
            server = ("dagster", "code-server", "start", "--socket", str(code), "-m", _MODULE)
            start(*server, "--location-name", _LOCATION, "--log-level", "warning")
            dagster.wait_for(lambda: _connects(code))
            start("dagster._daemon", "run", "-w", str(workspace))
            start(WEBSERVER, "-h", HOST, "-p", str(port), "-w", str(workspace))
            dagster.wait_for(lambda: _answers(dagster.url))
            logger.info(f"Dagster's UI is at {dagster.url}")
            yield dagster
        finally:
            dagster.end()


def _refuse_taken(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise DemoError(f"port {port} is taken ({error}): choose another one by --port") from error


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/server_info", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
