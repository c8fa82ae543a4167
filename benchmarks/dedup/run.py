"""``python -m benchmarks.dedup.run``: the cost of a claim by the size of the ledger."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from benchmarks import measure, table
from benchmarks.peer import WORK
from laion_assets import schemas
from laion_assets.dedup import ledger as ledgers
from laion_assets.dedup.runs import ROWS_AT_ONCE, SortedRun, SortedRunWriter, merge
from laion_assets.files import write_json
from laion_assets.layout import SegmentKey

_KNOWN_SHARE: Final = 0.1
"""Share of the new segment's pairs that the ledger already holds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--segments", default="10,100,1000", help="sizes of the ledger, in segments"
    )
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs per segment")
    args = parser.parse_args()

    rows = []
    chance = np.random.default_rng(0)
    for segments in [0, *map(int, args.segments.split(","))]:
        folder = WORK / "dedup"
        shutil.rmtree(folder, ignore_errors=True)
        ledger, partitions, pairs = folder / "ledger", folder / "partitions", folder / "pairs"
        _make_ledger(ledger, partitions, segments, args.pairs, chance)
        _make_pairs(pairs, ledger, args.pairs, chance)
        size = sum(path.stat().st_size for path in ledger.iterdir())
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "benchmarks.dedup.claim",
            ledger,
            partitions,
            pairs,
        ]
        _forget(ledger)
        first = measure.run(command)
        again = measure.run(command)
        answers = [json.loads(run.stdout.splitlines()[-1]) for run in (first, again)]
        expected = args.pairs - (int(args.pairs * _KNOWN_SHARE) if segments else 0)
        if [answer["kept"] for answer in answers] != [expected, expected]:
            raise SystemExit(f"{expected} pairs are new, but the claims kept {answers}")
        print(segments, answers, file=sys.stderr, flush=True)
        rows.append(
            [
                f"{segments:,}",
                f"{size / 1e9:.2f}",
                f"{size / max(1, segments * args.pairs):.1f}" if segments else "",
                f"{answers[0]['write']:.1f}",
                f"{answers[1]['write']:.1f}",
                f"{first.cpu_seconds:.1f}",
                f"{first.peak_own_bytes / 1e6:.0f}",
            ]
        )
    merged = _merge_seconds(WORK / "dedup", args.pairs, chance)
    shutil.rmtree(WORK / "dedup")
    columns = [
        "segments held",
        "GB",
        "bytes per pair",
        "one more: s",
        "again: s",
        "CPU s",
        "peak MB",
    ]
    text = table.markdown(columns, rows)
    text += (
        f"\n\nSegments of {args.pairs:,} pairs. Beside this, merging costs {merged:.2f} s for each "
        f"{args.pairs:,} claims and level, so once for each power of {ledgers.FAN} in the number "
        "of segments."
    )
    table.publish("dedup", text)


def _make_ledger(
    ledger: Path, partitions: Path, segments: int, pairs: int, chance: np.random.Generator
) -> None:
    """Make a ledger as ``segments`` claims leave it: runs of 1, 8, 64 … segments, random uids."""
    ledger.mkdir(parents=True)
    state = ledgers._State()
    for number in range(segments):
        key = SegmentKey(f"CC-MAIN-2023-{number // 100:02d}", f"{number % 100:02d}")
        state.owners[key] = ledgers._Owner(number, pairs)
        (partitions / key.hive).mkdir(parents=True)
    state.next_number = segments
    level = 20
    at = 0
    while at < segments:
        while ledgers.FAN**level > segments - at:
            level -= 1
        n = ledgers.FAN**level
        owners = (at, at + n)
        _, name = state.next_run()
        state.runs.append(_make_run(ledger, name, level, n * pairs, owners, chance))
        at += n
    write_json(ledger / "ledger.json", state.to_json())


def _make_run(
    ledger: Path,
    name: str,
    level: int,
    rows: int,
    owners: tuple[int, int],
    chance: np.random.Generator,
) -> SortedRun:
    steps = 1 + rows // ROWS_AT_ONCE
    with SortedRunWriter(ledger, name) as writer:
        for step in range(steps):
            begin, stop = step * (1 << 64) // steps, (step + 1) * (1 << 64) // steps
            n = rows * (step + 1) // steps - rows * step // steps
            high = np.sort(chance.integers(begin, stop - 1, n, dtype=np.uint64, endpoint=True))
            low = chance.integers(0, (1 << 64) - 1, n, dtype=np.uint64, endpoint=True)
            writer.write(high, low, chance.integers(*owners, n, dtype=np.uint32))
    return writer.run(level)


def _make_pairs(folder: Path, ledger: Path, rows: int, chance: np.random.Generator) -> None:
    """Make a segment's pair parquet; the largest run has :data:`_KNOWN_SHARE` of its uids."""
    folder.mkdir(parents=True)
    uids = chance.integers(0, (1 << 64) - 1, (rows, 2), dtype=np.uint64, endpoint=True)
    largest = max(ledger.glob("*.high"), key=lambda path: path.stat().st_size, default=None)
    if largest is not None:
        known = int(rows * _KNOWN_SHARE)
        high = np.memmap(largest, dtype="<u8", mode="r")
        low = np.memmap(largest.with_suffix(".low"), dtype="<u8", mode="r")
        picked = np.arange(known) * (len(high) // known)
        uids[:known, 0], uids[:known, 1] = high[picked], low[picked]
        chance.shuffle(uids)
    number = pa.array(np.arange(rows)).cast(pa.string())
    urls = pa.compute.binary_join_element_wise("https://img.example/a/b/", number, "")
    columns = {
        "uid": pa.Array.from_buffers(
            pa.binary(16), rows, [None, pa.py_buffer(uids.astype(">u8").tobytes())]
        ),
        "url": urls,
        "text": number,
        "language_score": pa.array(np.full(rows, 0.9, dtype=np.float32)),
    }
    place = pa.array(["en"] * rows)
    pairs = pa.table(
        [columns.get(field.name, place) for field in schemas.PAIRS], names=schemas.PAIRS.names
    ).cast(schemas.PAIRS)
    pq.write_table(pairs, folder / "part-00000.parquet", row_group_size=100_000)


def _forget(ledger: Path) -> None:
    """Drop the ledger from the system's cache, so that it is read from the disk."""
    for path in ledger.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _merge_seconds(folder: Path, pairs: int, chance: np.random.Generator) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    made = [
        _make_run(folder, f"m{number}", 0, pairs, (number, number + 1), chance)
        for number in range(ledgers.FAN)
    ]
    started = time.perf_counter()
    merge(folder, made, "merged", np.ones(ledgers.FAN, dtype=np.bool_), ROWS_AT_ONCE)
    return (time.perf_counter() - started) / ledgers.FAN


if __name__ == "__main__":
    main()
