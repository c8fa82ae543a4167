"""``python -m benchmarks.dedup.run``: the cost of a claim by the size of the ledger."""

from __future__ import annotations

import argparse
import json
import math
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
from benchmarks.dedup.claim import KEY
from benchmarks.peer import WORK
from laion_assets import schemas
from laion_assets.dedup import upkeep
from laion_assets.dedup.runs import ROWS_AT_ONCE, Columns, SortedRun, SortedRunWriter, merge
from laion_assets.dedup.state import Owner, State, load, open_runs, save
from laion_assets.layout import SegmentKey

_KNOWN_SHARE: Final = 0.1
"""Share of the new segment's pairs that the ledger already holds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--segments", default="10,100,1000", help="sizes of the ledger, in segments"
    )
    parser.add_argument("--pairs", type=int, default=500_000, help="pairs per segment")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each size")
    args = parser.parse_args()

    shutil.rmtree(WORK / "dedup", ignore_errors=True)
    chance = np.random.default_rng(0)
    made = [
        _Ledger(WORK / "dedup" / f"{segments}", segments, args.pairs, chance)
        for segments in [0, *map(int, args.segments.split(","))]
    ]
    # One after another, so that a busy machine is busy for all of them.
    for _ in range(args.rounds):
        for ledger in made:
            ledger.measure(cached=False)
            ledger.measure(cached=True)
    merged = _merge_seconds(WORK / "dedup", args.pairs, chance)
    shutil.rmtree(WORK / "dedup")
    columns = ["segments held", "GB", "CPU s", "cached: CPU s", "s", "locked: s", "MB", "peak MB"]
    text = table.markdown(columns, [ledger.row() for ledger in made])
    few, many = made[1], made[-1]
    growth = {
        cached: many.least("cpu", cached) / few.least("cpu", cached) for cached in (False, True)
    }
    exponent = math.log(growth[True]) / math.log(many.segments / few.segments)
    text += (
        f"\n\nSegments of {args.pairs:,} pairs, the best of {args.rounds}. From {few.segments:,} "
        f"segments to {many.segments:,} the CPU time grows {growth[False]:.2f} times, and "
        f"{growth[True]:.2f} times if the ledger is cached (exponent {exponent:.2f}). Beside this, "
        f"merging costs {merged:.2f} CPU s for each 1,000,000 claims and level, so once for each "
        f"power of {upkeep.FAN} in the number of segments."
    )
    table.publish("dedup", text)


class _Ledger:
    """A ledger, a segment that is to claim, and what that cost."""

    def __init__(
        self, folder: Path, segments: int, pairs: int, chance: np.random.Generator
    ) -> None:
        self.segments = segments
        self._ledger, self._partitions = folder / "ledger", folder / "partitions"
        self._pairs = folder / "pairs"
        make_ledger(self._ledger, self._partitions, segments, pairs, chance)
        _make_pairs(self._pairs, self._ledger, pairs, chance)
        self._bytes = sum(path.stat().st_size for path in self._ledger.iterdir())
        self._state = load(self._ledger)
        self._kept = pairs - (int(pairs * _KNOWN_SHARE) if segments else 0)
        self._found: dict[bool, list[dict[str, float]]] = {False: [], True: []}

    def measure(self, *, cached: bool) -> None:
        """Claim the segment, as if it had never been claimed."""
        shutil.rmtree(self._partitions / KEY.hive, ignore_errors=True)
        save(self._ledger, self._state)
        if not cached:
            _forget(self._ledger)
        command = [sys.executable, "-m", "benchmarks.dedup.claim"]
        run = measure.run([*command, self._ledger, self._partitions, self._pairs])
        answer = json.loads(run.stdout.splitlines()[-1])
        if answer.pop("kept") != self._kept:
            raise SystemExit(f"{self._kept} pairs are new, but the claim kept others: {answer}")
        self._found[cached].append(answer | {"peak": run.peak_own_bytes})
        print(self.segments, cached, answer, file=sys.stderr, flush=True)

    def least(self, name: str, cached: bool) -> float:
        return min(answer[name] for answer in self._found[cached])

    def row(self) -> list[str]:
        return [
            f"{self.segments:,}",
            f"{self._bytes / 1e9:.2f}",
            f"{self.least('cpu', False):.2f}",
            f"{self.least('cpu', True):.2f}",
            f"{self.least('wall', False):.1f}",
            f"{self.least('locked', False):.1f}",
            f"{self.least('disk', False) / 1e6:,.0f}",
            f"{self.least('peak', False) / 1e6:.0f}",
        ]


def make_ledger(
    ledger: Path, partitions: Path, segments: int, pairs: int, chance: np.random.Generator
) -> None:
    """Make a ledger as ``segments`` claims leave it: runs of 1, 8, 64 … segments, random uids."""
    ledger.mkdir(parents=True)
    state = State(next_number=segments)
    for number in range(segments):
        key = SegmentKey(f"CC-MAIN-2023-{number // 100:02d}", f"{number % 100:02d}")
        state.owners[str(key)] = Owner(number, pairs)
        (partitions / key.hive).mkdir(parents=True)
    level, at = 20, 0
    while at < segments:
        while upkeep.FAN**level > segments - at:
            level -= 1
        n = upkeep.FAN**level
        state.runs.append(_make_run(ledger, level, n * pairs, (at, at + n), chance))
        at += n
    save(ledger, state)


def _make_run(
    ledger: Path, level: int, rows: int, owners: tuple[int, int], chance: np.random.Generator
) -> SortedRun:
    steps = 1 + rows // ROWS_AT_ONCE
    with SortedRunWriter(ledger, owners[1] - 1, level, rows) as writer:
        for step in range(steps):
            begin, stop = step * (1 << 64) // steps, (step + 1) * (1 << 64) // steps
            n = rows * (step + 1) // steps - rows * step // steps
            high = np.sort(chance.integers(begin, stop - 1, n, dtype=np.uint64, endpoint=True))
            low = chance.integers(0, (1 << 64) - 1, n, dtype=np.uint64, endpoint=True)
            writer.write(Columns(high, low, chance.integers(*owners, n, dtype=np.uint32)))
    return writer.run()


def _make_pairs(folder: Path, ledger: Path, rows: int, chance: np.random.Generator) -> None:
    """Make a segment's pair parquet; the largest run has :data:`_KNOWN_SHARE` of its uids."""
    folder.mkdir(parents=True)
    uids = chance.integers(0, (1 << 64) - 1, (rows, 2), dtype=np.uint64, endpoint=True)
    held = load(ledger).runs
    if held:
        steps = 1 + held[0].rows // ROWS_AT_ONCE
        known = int(rows * _KNOWN_SHARE)
        with open_runs(ledger, held[:1]) as (largest,):
            for step in range(steps):
                claims = largest.between(step * (1 << 64) // steps, (step + 1) * (1 << 64) // steps)
                some = slice(known * step // steps, known * (step + 1) // steps)
                n = some.stop - some.start
                picked = chance.choice(len(claims.high), n, replace=False)
                uids[some, 0], uids[some, 1] = claims.high[picked], claims.low[picked]
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
    """CPU seconds for a million claims of one merge."""
    (folder / "merged").mkdir(parents=True, exist_ok=True)
    numbers = range(upkeep.FAN)
    made = [_make_run(folder, 0, pairs, (number, number + 1), chance) for number in numbers]
    counts = np.ones(upkeep.FAN, dtype=np.bool_)
    started = time.process_time()
    merged = merge(folder, made, folder / "merged", counts, ROWS_AT_ONCE)
    return (time.process_time() - started) / merged.rows * 1e6


if __name__ == "__main__":
    main()
