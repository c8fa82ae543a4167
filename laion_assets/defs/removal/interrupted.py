"""Ends what a killed removal has left in Dagster: a run that never ends, and the pools' slots.

The runs of a removal are in the process of the command. Where that is killed, nobody else notices,
and the next one would wait without end for the slots. What does not belong here: what a killed run
has left in the lake.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import dagster as dg

from laion_assets.defs.partitions import UNFINISHED

_BY: Final = "laion_assets/removal"
_PROCESS: Final = "laion_assets/removal_process"


def run_tags() -> Mapping[str, str]:
    """Tags by which the runs of this process are known."""
    # Whoever gives the command again does what is left: no daemon needs to.
    return {_BY: "yes", _PROCESS: _name(os.getpid()), "dagster/max_retries": "0"}


def end_interrupted(instance: dg.DagsterInstance) -> int:
    """Report the runs of removals that were killed on this machine as failed, and free their slots;
    return how many there were."""
    ended = 0
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED, tags={_BY: "yes"})):
        host, _, rest = run.tags.get(_PROCESS, "").partition(" ")
        number = rest.partition(" ")[0]
        if host != socket.gethostname() or not number.isdigit():
            continue
        if _name(int(number)) != run.tags[_PROCESS]:
            instance.report_run_failed(run, message="The removal that this run is of was killed.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            ended += 1
    return ended


def _name(process: int) -> str:
    """Machine, number and start of a process; a number may be used again, with another start."""
    try:
        about = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        about = ") " + " ".join(["0"] * 20)
    # The name, in parentheses, may hold anything; the start is the 22nd field.
    return f"{socket.gethostname()} {process} {about.rpartition(')')[2].split()[19]}"
