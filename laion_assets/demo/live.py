"""What the runs are making at this moment, for a person who waits.

On a terminal it is a table that is drawn again in its place; elsewhere a line for each run now and
then. It reads what Dagster has recorded of the runs: their steps, and the stages' log lines of
progress.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import dagster as dg
from rich.console import Console
from rich.live import Live
from rich.table import Table

logger = logging.getLogger(__name__)

PROGRESS: Final = re.compile(r"^(?P<what>.+?): (?P<rest>\d+/\d+ .+ in [\d.]+ s, .+)$")
"""A line of :class:`laion_assets.work.Progress`."""
_PLAIN_EVERY_S: Final = 15.0


@dataclass
class Making:
    """A run at work."""

    name: str
    started: float
    """Seconds since 1970."""
    step: str = ""
    progress: str = ""
    """The step's last line of progress: items, rate and time left."""
    cursor: str | None = None
    """How far the run's events have been read."""

    def seconds(self, now: float) -> float:
        return max(0.0, now - self.started)


class Following:
    """The runs that Dagster is at, each with its step and progress."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._runs: dict[str, Making] = {}

    def now(self, runs: Iterable[tuple[str, str, float | None]]) -> list[Making]:
        """Read what was recorded since the last call.

        ``runs``: id, name and start of those that have not ended; a run that waits has no start.
        """
        found = {}
        for run_id, name, started in runs:
            if started is not None:
                found[run_id] = self._runs.get(run_id) or Making(name, started)
                self._read(run_id, found[run_id])
        self._runs = found
        return sorted(found.values(), key=lambda making: making.name)

    def _read(self, run_id: str, making: Making) -> None:
        more = True
        while more:
            read = self._instance.get_records_for_run(run_id, cursor=making.cursor, limit=500)
            for record in read.records:
                entry = record.event_log_entry
                event = entry.dagster_event
                if event and event.event_type == dg.DagsterEventType.STEP_START:
                    making.step, making.progress = event.step_key or "", ""
                elif not event and (match := PROGRESS.match(entry.user_message)):
                    making.progress = match["rest"]
            making.cursor, more = read.cursor, read.has_more


class View:
    """Shows runs at work until the ``with`` block of :meth:`open` ends."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._logged = float("-inf")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take over the terminal's last lines; the log goes on above them."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def show(self, making: Iterable[Making], summary: str) -> None:
        """Show the runs; ``summary`` says how far all of it is."""
        now, runs = time.time(), list(making)
        if self._live:
            self._live.update(table(runs, summary, now), refresh=True)
        elif runs and time.monotonic() - self._logged >= _PLAIN_EVERY_S:
            self._logged = time.monotonic()
            logger.info(summary)
            for run in runs:
                logger.info(f"  {run.name}: {run.step} {run.progress}".rstrip())


def table(runs: Iterable[Making], summary: str, now: float) -> Table:
    """The runs, a line each."""
    shown = Table(title=summary, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "stage", "progress"):
        shown.add_column(column, no_wrap=True, overflow="ellipsis")
    shown.add_column("s", justify="right")
    for run in runs:
        shown.add_row(run.name, run.step, run.progress, f"{run.seconds(now):.0f}")
    return shown
