"""``python -m benchmarks.wat.run``: MB of compressed WAT per second, theirs and ours."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks import measure, table
from benchmarks.peer import WORK, peer_python
from benchmarks.wat.make import make_wat

_HERE: Final = Path(__file__).parent
_ROWS: Final = {
    "inflate": "floor: inflate only (igzip)",
    "fastwarc": "floor: read only (FastWARC)",
    "read": "ours: read only",
    "cc2dataset": "cc2dataset 1.5.0",
    "same_work": "ours, the same work",
    "everything": "ours, all rules, any language, parquet",
    "english": "ours, all rules, English, parquet",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=400, help="compressed size of the WAT")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median counts")
    args = parser.parse_args()

    peer = peer_python("cc2dataset", _HERE / "cc2dataset.txt")
    wat = _input(args.mb, seed=0)
    size = wat.stat().st_size / 1e6
    commands = {
        name: [sys.executable, "-m", "benchmarks.wat.ours", name, wat]
        for name in ("inflate", "read", "same_work", "everything", "english")
    }
    commands["fastwarc"] = [peer, _HERE / "theirs.py", "read", wat]
    commands["cc2dataset"] = [peer, _HERE / "theirs.py", "cc2dataset", wat]
    seconds: dict[str, list[float]] = {name: [] for name in _ROWS}
    peak = dict.fromkeys(_ROWS, 0)
    found = dict.fromkeys(_ROWS, 0)
    # In rounds, so that a busy moment of the machine does not hit one contestant alone.
    for _ in range(args.repeat):
        for name in _ROWS:
            measured = measure.run(commands[name])
            answer = json.loads(measured.stdout.splitlines()[-1])
            seconds[name].append(answer["seconds"])
            found[name] = answer["n"]
            peak[name] = max(peak[name], measured.peak_bytes)
            print(f"{name:12} {answer}", file=sys.stderr, flush=True)
    if abs(found["same_work"] - found["cc2dataset"]) > 0.001 * found["cc2dataset"]:
        raise SystemExit(f"the numbers of pairs differ, so it is not the same work: {found}")

    rate = {name: size / statistics.median(times) for name, times in seconds.items()}
    rows = [
        [
            label,
            f"{rate[name]:.0f}",
            f"{rate[name] / rate['cc2dataset']:.2f}",
            f"{rate['fastwarc'] / rate[name]:.2f}",
            f"{peak[name] / 1e6:.0f}",
            f"{found[name]:,}"
            if name in ("cc2dataset", "same_work", "everything", "english")
            else "",
        ]
        for name, label in _ROWS.items()
    ]
    columns = [
        "",
        "MB/s",
        "times cc2dataset",
        "times the read-only floor's time",
        "peak MB",
        "pairs",
    ]
    text = table.markdown(columns, rows)
    text += f"\n\nOne process each on a WAT of {size:.0f} MB, median of {args.repeat}. "
    table.publish("wat", text + _segment(args.mb))


def _input(megabytes: int, seed: int) -> Path:
    wat = WORK / "wat" / f"{megabytes}-{seed}.warc.wat.gz"
    if not wat.exists():
        wat.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {wat}", file=sys.stderr, flush=True)
        make_wat(wat, megabytes, seed)
    return wat


def _segment(megabytes: int) -> str:
    """Measure a segment of four files in two worker processes: both cores should be busy."""
    wats = [_input(megabytes // 4, seed) for seed in range(1, 5)]
    with tempfile.TemporaryDirectory(dir=WORK) as out:
        started = time.perf_counter()
        measured = measure.run([sys.executable, "-m", "benchmarks.wat.segment", out, *wats])
        seconds = time.perf_counter() - started
    total = sum(wat.stat().st_size for wat in wats) / 1e6
    return (
        f"A segment of 4 files ({total:.0f} MB) in 2 worker processes, duplicates between the "
        f"files dropped, imports included: {total / seconds:.0f} MB/s, "
        f"{measured.cpu_seconds / seconds:.2f} cores busy, peak {measured.peak_bytes / 1e6:.0f} MB "
        "for all three processes."
    )


if __name__ == "__main__":
    main()
