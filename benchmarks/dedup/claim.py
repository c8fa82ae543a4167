"""One segment's claim: ``python -m benchmarks.dedup.claim LEDGER PARTITIONS PAIRS``.

Prints a JSON line.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from laion_assets.dedup.ledger import claiming
from laion_assets.layout import SegmentKey
from laion_assets.removals.entries import Entries

KEY: Final = SegmentKey("CC-MAIN-2024-22", "00")


def main(ledger: Path, partitions: Path, pairs: Path) -> None:
    none = Entries()
    staging = partitions / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    started = time.perf_counter()
    with claiming(ledger, partitions, KEY) as claims:
        counts = claims.write(pairs, staging, removals=none, blocklists=none)
        wrote = time.perf_counter()
        shutil.rmtree(partitions / KEY.hive, ignore_errors=True)
        (partitions / KEY.hive).parent.mkdir(exist_ok=True)
        staging.rename(partitions / KEY.hive)
    ended = time.perf_counter()
    seconds = {"write": wrote - started, "merge": ended - wrote}
    print(json.dumps({**seconds, "kept": counts.kept, "rejects": counts.rejects}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
