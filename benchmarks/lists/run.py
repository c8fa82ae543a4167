"""``python -m benchmarks.lists.run``: lists of millions of entries, ours and Python's set."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure, table
from benchmarks.peer import WORK

_BLOCK: Final = 1_000_000
_KINDS: Final = {"sha256": "image hashes", "url-sha256": "URL hashes"}
_MB: Final = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--asked", type=int, default=1_000_000, help="rows to look up")
    args = parser.parse_args()

    folder = WORK / "lists"
    shutil.rmtree(folder, ignore_errors=True)
    asked = _make(folder, args.entries, args.asked)
    rows = []
    for kind, label in _KINDS.items():
        command = [sys.executable, "-m", "benchmarks.lists.contestant"]
        where: list[str | Path] = [kind, folder / kind, folder / f"{kind}.cache", asked]
        answers = {}
        for name, way in (
            ("a set of text", "set"),
            ("ours, compiling", "ours"),
            ("ours, again", "ours"),
        ):
            run = measure.run([*command, way, *where])
            answers[name] = answer = json.loads(run.stdout.splitlines()[-1])
            rows.append(
                [
                    f"{label}: {name}",
                    f"{answer['load']:.2f}",
                    f"{run.peak_own_bytes / _MB:,.0f}",
                    f"{run.peak_bytes / _MB:,.0f}",
                    f"{answer['first'] / _MB:.2f}",
                    f"{answer['rate'] / _MB:.2f}",
                    f"{answer['single'] / _MB:.2f}",
                ]
            )
        if len({answer["named"] for answer in answers.values()}) > 1:
            raise SystemExit(f"the numbers of listed rows differ: {answers}")
    columns = ["", "load s", "MB", "MB with mapped files", "first M/s", "M/s", "one by one M/s"]
    table.publish(
        "lists",
        f"{table.markdown(columns, rows)}\n\n{args.entries:,} entries; {args.asked:,} rows looked "
        "up three times, half of them listed.",
    )


def _make(folder: Path, entries: int, asked: int) -> Path:
    """Write a text list of each kind, and the rows to look up; return the rows' file."""
    chance = np.random.default_rng(0)
    columns: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for kind in _KINDS:
        (folder / kind).mkdir(parents=True)
    listed = asked // 2
    urls = [f"https://images{i % 9999}.example.org/photos/{i}/large.jpg" for i in range(asked)]
    chance.shuffle(urls)
    columns["url-sha256"] = urls
    known = [hashlib.sha256(url.encode()).hexdigest() for url in urls[:listed]]
    with (
        (folder / "sha256" / "list.txt").open("w") as images,
        (folder / "url-sha256" / "list.txt").open("w") as of_urls,
    ):
        of_urls.writelines(f"url-sha256:{value}\n" for value in known)
        for start in range(0, entries, _BLOCK):
            n = min(_BLOCK, entries - start)
            values = [chance.bytes(32).hex() for _ in range(n)]
            images.writelines(f"{value}\n" for value in values)
            of_urls.writelines(
                f"url-sha256:{value[::-1]}\n" for value in values[listed * (not start) :]
            )
            if not start:
                columns["sha256"] = values[:listed]
    columns["sha256"] += [chance.bytes(32).hex() for _ in range(asked - listed)]
    order = chance.permutation(asked)
    path = folder / "asked.parquet"
    pq.write_table(pa.table({k: pa.array(v).take(order) for k, v in columns.items()}), path)
    return path


if __name__ == "__main__":
    main()
