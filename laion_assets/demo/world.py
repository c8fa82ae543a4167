"""The demo's surroundings: its places, the crawl server, the Dagster processes."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
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
from dagster._core.scheduler.instigation import TickStatus

from laion_assets.defs.partitions import UNFINISHED
from laion_assets.defs.removal.remake import observe
from laion_assets.files import LockedError, locked, write_text
from laion_assets.lake import open_lake
from laion_assets.sample_crawl.build import build_sample_crawl
from laion_assets.sample_crawl.drawn_crawl import build_drawn_crawl
from laion_assets.settings import Settings

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

SAMPLE: Final = "sample"
DRAWN: Final = "drawn"
"""The worlds, by the name of their settings file; the drawn one is there to train on."""

_TURN_S: Final = 30.0
_GENTLE_END_S: Final = 15.0


class DemoError(RuntimeError):
    """The demo could not go on; the message says why and where to look."""


@dataclass(frozen=True)
class Places:
    """Where the demo keeps its things: those of the drawn world in folders of its name."""

    root: Path
    world: str = SAMPLE

    @property
    def folder(self) -> Path:
        return self.root / ".demo" / self._name

    @property
    def crawl(self) -> Path:
        return self.folder / "crawl"

    @property
    def home(self) -> Path:
        return self.root / ".dagster_home" / self._name

    @property
    def log(self) -> Path:
        return self.folder / "dagster.log"

    @property
    def group(self) -> Path:
        """Holds the process group of a running demo."""
        return self.folder / "processes"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def _name(self) -> str:
        return "" if self.world == SAMPLE else self.world

    def build_crawl(self) -> None:
        """Build the world's crawl where it is not there and current."""
        if self.world == DRAWN:
            build_drawn_crawl(self.crawl)
        else:
            build_sample_crawl(self.crawl)


def prepare(places: Places, say: Say) -> dg.DagsterInstance:
    """Build the sample crawl if it is not there, and open the demo's Dagster instance."""
    configured = places.root / "dagster.yaml"
    if not configured.exists():
        raise DemoError(f"no dagster.yaml in {places.root}: run the demo from the checkout")
    places.home.mkdir(parents=True, exist_ok=True)
    installed = places.home / "dagster.yaml"
    if not installed.exists() or installed.read_bytes() != configured.read_bytes():
        shutil.copyfile(configured, installed)
    say("building the sample crawl, where it is not there and current")
    places.build_crawl()
    return dg.DagsterInstance.from_config(str(places.home))


@contextmanager
def sole_demo(places: Places, say: Say) -> Iterator[None]:
    """Two demos of one checkout would end each other's processes: the second waits its turn."""
    try:
        with locked(
            places.lock, lambda: say("another demo runs here, waiting for it to end"), _TURN_S
        ):
            yield
    except LockedError as error:
        raise DemoError(f"another demo runs in {places.root}: end it first") from error


@contextmanager
def crawl_server(places: Places, settings: Settings, say: Say) -> Iterator[int]:
    """Serve the sample crawl where the settings expect it; yields the process group that
    everything else of the demo joins, and that ends as a whole."""
    url = urlsplit(settings.crawl_source.data_url)
    companion = subprocess.Popen(  # noqa: S603 - our own command line
        [
            sys.executable,
            "-m",
            "laion_assets.demo.crawl_process",
            str(places.crawl),
            str(url.port or 80),
            str(os.getpid()),
        ],
        cwd=places.root,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    write_text(places.group, str(companion.pid))
    assert companion.stdout
    answer = companion.stdout.readline().strip()
    if answer != "ready":
        companion.wait()
        raise DemoError(
            f"port {url.port} cannot be served ({answer}): end what listens there, or set another "
            "port in a copy of laion_assets/deployments/sample.toml named by LAION_ASSETS_CONFIG"
        )
    say(f"the sample crawl is served at {url.geturl()}")
    try:
        yield companion.pid
    finally:
        _kill_group(companion.pid)
        companion.wait()
        places.group.unlink(missing_ok=True)


def stop_leftovers(places: Places, instance: dg.DagsterInstance, say: Say) -> None:
    """End what an interrupted demo left running, and close its unfinished runs and ticks."""
    group = places.group.read_text() if places.group.exists() else ""
    if group.isdigit():
        if any(_group_of(process) == int(group) and _is_ours(process) for process in _processes()):
            say("ending the processes of an interrupted demo")
            _kill_group(int(group))
        places.group.unlink()
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        instance.report_run_canceled(run, message="The demo that started this run was interrupted.")
        # A dead run keeps its pools' slots; its successor would be blocked by them, and later
        # segments would go first.
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        say(f"closed the unfinished run {run.run_id[:8]}")
    for state in instance.all_instigator_state():
        # The daemon would go on in the middle of a tick: the later segments' runs without those
        # before them, and so another order of claims than that of an undisturbed demo.
        for tick in instance.get_ticks(
            state.instigator_origin_id, state.selector_id, statuses=[TickStatus.STARTED]
        ):
            instance.update_tick(
                tick.with_status(TickStatus.SKIPPED, skip_reason="the demo was interrupted")
            )


def observe_lists(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Tell Dagster what changed removal lists and blocklists concern, as the sensor would later."""
    observe(open_lake(settings.lake), instance)


def _processes() -> Iterator[Path]:
    return Path("/proc").glob("[0-9]*")


def _is_ours(process: Path) -> bool:
    """Process ids are used again: a group of the same number may be a stranger's."""
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return b"dagster" in command or b"laion_assets" in command


def _group_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except (OSError, ValueError):
        return None


def _kill_group(group: int) -> None:
    """Everything in the group survives a SIGKILL by design, so nothing gentler is needed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@dataclass(frozen=True)
class Dagster:
    """A running ``dagster dev``."""

    url: str
    since: float
    """When it was started: what it does comes after."""
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises :class:`DemoError` if it has ended."""
        if self.process.poll() is not None:
            raise DemoError(
                f"dagster dev ended with {self.process.returncode}; its log is {self.log}"
            )


@contextmanager
def dagster_dev(places: Places, port: int, group: int, say: Say) -> Iterator[Dagster]:
    """Run ``dagster dev`` on the demo's instance; raises :class:`DemoError` if it cannot."""
    _refuse_taken(port)
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml"]
    command += ["-h", "127.0.0.1", "-p", str(port)]
    since = time.time()
    with places.log.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command,
            cwd=places.root,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=group,
            env=os.environ | {"DAGSTER_HOME": str(places.home)},
        )
    dagster = Dagster(f"http://127.0.0.1:{port}", since, process, places.log)
    try:
        _await_ui(dagster)
        say(f"Dagster's UI is at {dagster.url}")
        yield dagster
    except BaseException:
        # Interrupted: whatever runs ends with the group, at once.
        _kill_group(group)
        process.wait()
        raise
    process.terminate()
    try:
        process.wait(_GENTLE_END_S)
    except subprocess.TimeoutExpired:
        say("dagster dev takes its time to end; ending it")


def _refuse_taken(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise DemoError(f"port {port} is taken ({error}): choose another by --port") from error


def _await_ui(dagster: Dagster, patience_s: float = 120) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        dagster.check()
        try:
            with urllib.request.urlopen(f"{dagster.url}/server_info", timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise DemoError(
        f"dagster dev did not answer at {dagster.url} in {patience_s:.0f} s; see {dagster.log}"
    )
