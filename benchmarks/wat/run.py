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
    "cld2": "floor: detect the languages only (CLD2)",
    "read": "ours: read only",
    "cc2dataset": "cc2dataset 1.5.0",
    "daft": "Daft 0.7.26",
    "same_work": "ours, the same work",
    "everything": "ours, all rules, any language, parquet",
    "english": "ours, all rules, English, parquet",
}
_OURS: Final = ("inflate", "cld2", "read", "same_work", "everything", "english")
_PAIRS: Final = ("cc2dataset", "daft", "same_work", "everything", "english")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=400, help="compressed size of each WAT")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the fastest counts")
    args = parser.parse_args()
    texts = [_contest(kind, args.mb, args.repeat) for kind in ("realistic", "dense")]
    about = (
        f"One process each on WATs of {args.mb} MB; MB for each CPU second, the fastest of "
        f"{args.repeat} rounds and the median. Daft's work ends with the links' own addresses. "
    )
    table.publish("wat", "\n\n".join([*texts, about + _segment(args.mb)]))


def _contest(kind: str, megabytes: int, rounds: int) -> str:
    wat = _input(megabytes, 0, kind)
    size = wat.stat().st_size / 1e6
    peer = peer_python("cc2dataset", _HERE / "cc2dataset.txt")
    commands: dict[str, list[str | Path]] = {
        name: [sys.executable, "-m", "benchmarks.wat.ours", name, wat] for name in _OURS
    }
    commands["fastwarc"] = [peer, _HERE / "theirs.py", "read", wat]
    commands["cc2dataset"] = [peer, _HERE / "theirs.py", "cc2dataset", wat]
    commands["daft"] = [peer_python("daft", _HERE / "daft.txt"), _HERE / "daft_wat.py", wat]
    rates: dict[str, list[float]] = {name: [] for name in _ROWS}
    peak, found = dict.fromkeys(_ROWS, 0), dict.fromkeys(_ROWS, 0)
    # In rounds, so that a busy moment of the machine does not hit one contestant alone.
    for _ in range(rounds):
        for name in _ROWS:
            measured = measure.run(commands[name])
            answer = json.loads(measured.stdout.splitlines()[-1])
            rates[name].append(size / answer["cpu_seconds"])
            found[name] = answer["n"]
            peak[name] = max(peak[name], measured.peak_bytes)
            print(f"{kind} {name:12} {answer}", file=sys.stderr, flush=True)
    for name in ("daft", "same_work"):
        if abs(found[name] - found["cc2dataset"]) > 0.001 * found["cc2dataset"]:
            raise SystemExit(f"the numbers of pairs differ, so it is not the same work: {found}")
    best = {name: max(found) for name, found in rates.items()}
    rows = [
        [
            label,
            f"{best[name]:.0f}",
            f"{statistics.median(rates[name]):.0f}",
            f"{best[name] / best['cc2dataset']:.2f}",
            f"{best['fastwarc'] / best[name]:.2f}",
            f"{peak[name] / 1e6:.0f}",
            f"{found[name]:,}" if name in _PAIRS else "",
        ]
        for name, label in _ROWS.items()
    ]
    columns = [
        kind,
        "MB/s",
        "median",
        "times cc2dataset",
        "times the read-only floor's time",
        "peak MB",
        "pairs",
    ]
    return table.markdown(columns, rows)


def _input(megabytes: int, seed: int, kind: str) -> Path:
    wat = WORK / "wat" / f"{kind}-{megabytes}-{seed}.warc.wat.gz"
    if not wat.exists():
        wat.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {wat}", file=sys.stderr, flush=True)
        make_wat(wat, megabytes, seed, realistic=kind == "realistic")
    return wat


def _segment(megabytes: int) -> str:
    """Measure a segment of four files in two worker processes: both cores should be busy."""
    wats = [_input(megabytes // 4, seed, "realistic") for seed in range(1, 5)]
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
