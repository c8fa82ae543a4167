"""The demo's surroundings: its folders, the crawl server and the Dagster processes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import dagster as dg

from laion_assets.defs.internals import skip_started_ticks
from laion_assets.defs.partitions import INTERRUPTED_TAG, UNFINISHED
from laion_assets.defs.removal.remake import observe
from laion_assets.demo.services import Dagster, DemoError, dagster_services
from laion_assets.files import LockedError, locked, write_json, write_text
from laion_assets.lake import open_lake
from laion_assets.sample_crawl.build import build_sample_crawl
from laion_assets.sample_crawl.drawn_crawl import build_drawn_crawl
from laion_assets.settings import DAGSTER_CONFIG, Settings

logger = logging.getLogger(__name__)

SAMPLE: Final = "sample"
DRAWN: Final = "drawn"
"""The worlds, by the name of their settings file; the drawn world is for training on."""

_MAX_RETRIES: Final = "dagster/max_retries"
"""The tag by which Dagster bounds its own retries of a run."""
_TURN_S: Final = 30.0


@dataclass(frozen=True)
class Places:
    """Where the demo keeps its files; the drawn world has subfolders of its name."""

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
        """The file that holds the process group of a running demo."""
        return self.folder / "processes"

    @property
    def dagster(self) -> Path:
        """The file that says where the running Dagster is, and whether it is there for its UI."""
        return self.folder / "dagster.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def _name(self) -> str:
        return "" if self.world == SAMPLE else self.world

    def build_crawl(self) -> None:
        """Build the world's crawl unless it is up to date."""
        if self.world == DRAWN:
            build_drawn_crawl(self.crawl)
        else:
            build_sample_crawl(self.crawl)


def prepare(places: Places) -> dg.DagsterInstance:
    """Build the world's crawl unless it is up to date, and open the demo's Dagster instance."""
    places.home.mkdir(parents=True, exist_ok=True)
    installed, shipped = places.home / DAGSTER_CONFIG.name, DAGSTER_CONFIG.read_bytes()
    if not installed.exists() or installed.read_bytes() != shipped:
        installed.write_bytes(shipped)
    logger.info("building the crawl unless it is up to date")
    places.build_crawl()
    return dg.DagsterInstance.from_config(str(places.home))


@contextmanager
def sole_demo(places: Places, patience_s: float = _TURN_S) -> Iterator[None]:
    """Hold the checkout's only Dagster, waiting for another one to end.

    Two of one checkout would kill each other's processes. Raises :class:`DemoError` if the other
    one does not end within ``patience_s``.
    """

    def waiting() -> None:
        url = running_dagster(places)
        logger.info(f"waiting for another demo of this checkout to end{_at(url)}")

    try:
        with locked(places.lock, waiting, patience_s):
            # A killed one left it, and it would be taken for ours.
            places.dagster.unlink(missing_ok=True)
            yield
    except LockedError as error:
        raise DemoError(f"another demo is running in {places.root}: end it first") from error


def _at(url: str | None) -> str:
    return f"; until then, Dagster's UI is at {url}" if url else ""


def running_dagster(places: Places, *, idle: bool = False) -> str | None:
    """URL of the Dagster that another process of this checkout runs; None if there is none.

    ``idle``: only one that was started for its UI, and builds nothing by itself.
    """
    try:
        with locked(places.lock, lambda: None, 0):
            return None
    except LockedError:
        about = json.loads(places.dagster.read_text()) if places.dagster.exists() else {}
        return about.get("url") if about.get("idle") or not idle else None


@contextmanager
def crawl_server(places: Places, settings: Settings) -> Iterator[int]:
    """Serve the sample crawl where the settings expect it.

    Yields the process group that all other processes of the demo join, and that dies as a whole.
    Raises :class:`DemoError` if the port is taken.
    """
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
            f"port {url.port} cannot be served ({answer}): stop what is listening there, or set "
            "another port in a copy of laion_assets/deployments/sample.toml and name the copy by "
            "LAION_ASSETS_CONFIG or --config"
        )
    logger.info(f"the sample crawl is at {url.geturl()}")
    try:
        yield companion.pid
    finally:
        _kill_group(companion.pid)
        companion.wait()
        places.group.unlink(missing_ok=True)


def stop_leftovers(places: Places, instance: dg.DagsterInstance) -> None:
    """Kill what an interrupted demo left running, and close its unfinished runs and ticks."""
    group = places.group.read_text() if places.group.exists() else ""
    if group.isdigit():
        if any(_group_of(process) == int(group) and _is_ours(process) for process in _processes()):
            logger.info("killing the processes of an interrupted demo")
            _kill_group(int(group))
        places.group.unlink()
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        # Failed, not canceled: the crawl sensor leaves what was canceled to a person. And not to be
        # retried by Dagster: the sensor launches the segments in their order.
        instance.add_run_tags(run.run_id, {_MAX_RETRIES: "0", INTERRUPTED_TAG: "true"})
        instance.report_run_failed(run, message="The demo that started this run was interrupted.")
        # A dead run keeps its pools' slots. They would block its successor, and later segments
        # would go first.
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        logger.info(f"closed the unfinished run {run.run_id[:8]}")
    # The daemon would continue in the middle of a tick and launch later segments without the
    # earlier ones. Segments would then claim shared pairs in another order than undisturbed.
    skip_started_ticks(instance, "the demo was interrupted")


def observe_lists(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Report to Dagster which partitions changed lists make stale, as the sensor would later."""
    observe(open_lake(settings.lake), instance)


def _processes() -> Iterator[Path]:
    return Path("/proc").glob("[0-9]*")


def _is_ours(process: Path) -> bool:
    """True for a process of the demo; another's group may have reused the same number."""
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
    """Send SIGKILL to a group; its processes are designed to survive that."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@contextmanager
def dagster_in(places: Places, port: int, group: int, *, idle: bool = False) -> Iterator[Dagster]:
    """Run Dagster's services on the demo's instance, in the process group ``group``.

    ``idle``: for their UI; a demo may then have them build what it needs. Raises as
    :func:`~laion_assets.demo.services.dagster_services` does.
    """
    with dagster_services(places.root, places.home, port, places.log, group) as dagster:
        write_json(places.dagster, {"url": dagster.url, "idle": idle})
        try:
            yield dagster
        except BaseException:
            # Interrupted: kill whatever runs, at once.
            _kill_group(group)
            raise
        finally:
            places.dagster.unlink(missing_ok=True)
