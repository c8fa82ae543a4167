"""``python -m benchmarks.stats.run``: the catalog's macros over many rows, and the same questions
in pandas and pyarrow."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks import measure, table
from benchmarks.peer import WORK
from benchmarks.stats.contestant import OURS, WAYS
from benchmarks.stats.make import make

_GB: Final = 1e9
# The last is pyarrow's message when it cannot make a str of a value.
_ENDED_BY_MEMORY: Final = (
    "MemoryError", "ArrowMemoryError", "malloc of size", "bad_alloc", "Unknown error: Wrapping",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--memory-gb", type=float, default=16.0, help="memory for a question")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for a question")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--only-make", action="store_true", help="make the rows, do not ask")
    args = parser.parse_args()

    lake = WORK / "stats" / "lake"
    started = time.monotonic()
    size = make(lake, args.rows)
    print(f"{size / _GB:.1f} GB, made in {time.monotonic() - started:.0f} s", file=sys.stderr)
    if args.only_make:
        return
    ways = args.ways.split(",")
    rows = [[f"`{question}`", *_row(question, ways, lake, args)] for question in OURS]
    columns = ["question", *(f"{way}: {what}" for way in ways for what in ("s", "GB"))]
    table.publish(
        "stats",
        f"{table.markdown(columns, rows)}\n\n{args.rows:,} rows, {size / _GB:.1f} GB of parquet in "
        f"{len(list(lake.glob('filtered_subset/*/*/*')))} files; a question may take "
        f"{args.memory_gb:g} GB and {args.timeout:g} s. Asked once each, in a process of its own; "
        "files as the system's cache has them.",
    )


def _row(question: str, ways: list[str], lake: Path, args: argparse.Namespace) -> list[str]:
    cells: list[str] = []
    answers: dict[str, Any] = {}
    for way in ways:
        command = [sys.executable, "-m", "benchmarks.stats.contestant", way, question]
        try:
            run = measure.run([*command, str(lake), str(args.memory_gb)], timeout_s=args.timeout)
        except subprocess.TimeoutExpired:
            cells += ["too long", ""]
            continue
        except RuntimeError as error:
            if not any(message in str(error) for message in _ENDED_BY_MEMORY):
                raise
            cells += ["does not fit", ""]
            continue
        result = json.loads(run.stdout.splitlines()[-1])
        answers[way] = result["answer"]
        cells += [f"{result['seconds']:.1f}", f"{run.peak_own_bytes / _GB:.1f}"]
    if any(answers[one] != answers[other] for one, other in pairwise(answers)):
        raise SystemExit(f"{question}: the answers differ: {answers}")
    return cells


if __name__ == "__main__":
    main()
