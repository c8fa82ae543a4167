"""One segment's claim: ``python -m benchmarks.dedup.claim LEDGER PARTITIONS PAIRS``.

Prints a JSON line with what it cost, imports left out.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import pyarrow.compute  # noqa: F401 - the writer would import it while it is measured
from typing_extensions import override

from laion_assets.dedup.ledger import claiming
from laion_assets.layout import SegmentKey
from laion_assets.removals.entries import Entries

KEY: Final = SegmentKey("CC-MAIN-2024-22", "00")


class _Locked(logging.Handler):
    """Finds how long the ledger was locked in what it logs."""

    seconds = 0.0

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"locked for ([\d.]+) s", record.getMessage()):
            self.seconds += float(found[1])


def main(ledger: Path, partitions: Path, pairs: Path) -> None:
    none, locked = Entries(), _Locked()
    logger = logging.getLogger("laion_assets")
    logger.setLevel(logging.INFO)
    logger.addHandler(locked)
    staging = partitions / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    read, cpu, wall = _read(), time.process_time(), time.perf_counter()
    with claiming(ledger, partitions, KEY) as claims:
        counts = claims.write(pairs, staging, removals=none, blocklists=none)
        shutil.rmtree(partitions / KEY.hive, ignore_errors=True)
        (partitions / KEY.hive).parent.mkdir(exist_ok=True)
        staging.rename(partitions / KEY.hive)
    cost = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "read": _read()["rchar"] - read["rchar"],
        "disk": _read()["read_bytes"] - read["read_bytes"],
        "locked": locked.seconds,
    }
    print(json.dumps({**cost, "kept": counts.kept, "rejects": counts.rejects}))


def _read() -> dict[str, int]:
    """Bytes that this process has read: ``rchar`` by calls, ``read_bytes`` from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
