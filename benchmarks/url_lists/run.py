"""``python -m benchmarks.url_lists.run``: rows a second of a list, by what is done with them."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Final

from benchmarks import measure, table
from benchmarks.url_lists.make import make_lists

_WAYS: Final = {
    "read": "read",
    "before_language": "read, text and URL rules",
    "everything": "pairs in parquet: with language, uid, the list's own columns",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for way, label in _WAYS.items():
        cells: list[str] = []
        for path in make_lists(Path(".bench/url_lists"), args.rows):
            runs = [
                measure.run([sys.executable, "-m", "benchmarks.url_lists.ours", way, path])
                for _ in range(args.repeat)
            ]
            answers = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
            seconds = statistics.median(answer["cpu_seconds"] for answer in answers)
            cells += [
                f"{answers[0]['n'] / seconds:,.0f}",
                f"{max(run.peak_own_bytes for run in runs) / 1e6:.0f}",
            ]
        rows.append([label, *cells])
    columns = ["", "parquet: rows / CPU s", "peak MB", "CSV: rows / CPU s", "peak MB"]
    text = table.markdown(columns, rows)
    text += f"\n\nOne process each on one core, {args.rows:,} rows, median of {args.repeat}."
    table.publish("url_lists", text)


if __name__ == "__main__":
    main()
