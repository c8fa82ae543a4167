"""The demo's surroundings: its places, the crawl server, the Dagster processes."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import dagster as dg

from laion_assets.sample_crawl.build import build_sample_crawl
from laion_assets.sample_crawl.server import SampleServer
from laion_assets.settings import Settings

Say = Callable[[str], None]

UNFINISHED: Final = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_PR_SET_PDEATHSIG: Final = 1


class DemoError(RuntimeError):
    """The demo could not go on; the message says why and where to look."""


@dataclass(frozen=True)
class Places:
    """Where the demo keeps its things."""

    root: Path

    @property
    def crawl(self) -> Path:
        return self.root / ".demo" / "crawl"

    @property
    def home(self) -> Path:
        return self.root / ".dagster_home"

    @property
    def log(self) -> Path:
        return self.root / ".demo" / "dagster.log"

    @property
    def process(self) -> Path:
        return self.root / ".demo" / "dagster.pid"


def prepare(places: Places, say: Say) -> dg.DagsterInstance:
    """Build the sample crawl if it is not there, and open the demo's Dagster instance."""
    configured = places.root / "dagster.yaml"
    if not configured.exists():
        raise DemoError(f"no dagster.yaml in {places.root}: run the demo from the checkout")
    places.home.mkdir(parents=True, exist_ok=True)
    installed = places.home / "dagster.yaml"
    if not installed.exists() or installed.read_bytes() != configured.read_bytes():
        shutil.copyfile(configured, installed)
    if not (places.crawl / "manifest.json").exists():
        say("building the sample crawl")
        build_sample_crawl(places.crawl)
    # Dagster's own processes read it; this one names its instance openly.
    os.environ["DAGSTER_HOME"] = str(places.home)
    return dg.DagsterInstance.from_config(str(places.home))


@contextmanager
def crawl_server(places: Places, settings: Settings, say: Say) -> Iterator[SampleServer]:
    """Serve the sample crawl where the settings expect it."""
    url = urlsplit(settings.crawl_source.data_url)
    try:
        server = SampleServer(places.crawl, port=url.port or 80)
    except OSError as error:
        raise DemoError(
            f"port {url.port} is taken ({error}): end what listens there, or set another port in "
            "a copy of laion_assets/deployments/sample.toml named by LAION_ASSETS_CONFIG"
        ) from error
    with server:
        say(f"the sample crawl is served at {server.url}")
        yield server


def stop_leftovers(places: Places, instance: dg.DagsterInstance, say: Say) -> None:
    """End what an interrupted demo left running, and close its unfinished runs."""
    if places.process.exists():
        group = int(places.process.read_text())
        if _is_dagster(group):
            say("ending the Dagster processes of an interrupted demo")
            _end_group(group)
        places.process.unlink()
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        instance.report_run_canceled(run, message="The demo that started this run was interrupted.")
        say(f"closed the unfinished run {run.run_id[:8]}")


def _is_dagster(pid: int) -> bool:
    """Whether the process is a Dagster one: process ids are used again."""
    try:
        return b"dagster" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return any(
            b"dagster" in command.read_bytes()
            for command in Path("/proc").glob("[0-9]*/cmdline")
            if _group_of(command.parent) == pid
        )


def _group_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except (OSError, ValueError):
        return None


def _end_group(group: int, patience_s: float = 15.0) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def dagster_dev(places: Places, port: int, say: Say) -> Iterator[str]:
    """Run ``dagster dev`` on the demo's instance; yields the address of its UI."""
    places.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml"]
    command += ["-h", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    with places.log.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command,
            cwd=places.root,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    places.process.write_text(str(process.pid))
    try:
        _await_ui(url, process, places.log)
        say(f"Dagster's UI is at {url}")
        yield url
    finally:
        _end_group(process.pid)
        process.wait()
        places.process.unlink(missing_ok=True)


def _await_ui(
    url: str, process: subprocess.Popen[bytes], log: Path, patience_s: float = 120
) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"dagster dev ended with {process.returncode}; its log is {log}")
        try:
            with urllib.request.urlopen(f"{url}/server_info", timeout=5):  # noqa: S310 - loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise DemoError(f"dagster dev did not answer at {url} in {patience_s:.0f} s; its log is {log}")
