"""``python -m benchmarks.removal.run``: samples are taken out of lakes of different sizes."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final

from benchmarks import measure, table
from benchmarks.peer import WORK
from benchmarks.removal.make import NEEDLE, SHARDS, build
from laion_assets.lake import LocalLake
from laion_assets.layout import FILTERED_SUBSET, PARTITIONS
from laion_assets.tables import read_parquet

_FOLDER: Final = WORK / "removal"
_COMMAND: Final = Path(sys.executable).with_name("laion-assets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", default="10,100,1000", help="sizes, comma-separated")
    parser.add_argument("--samples", type=int, default=10_000, help="samples of a segment")
    parser.add_argument("--take", default="1,100,10000", help="samples to take, comma-separated")
    args = parser.parse_args()
    sizes, takes = ([int(n) for n in of.split(",")] for of in (args.segments, args.take))
    shutil.rmtree(_FOLDER, ignore_errors=True)
    rows = []
    for size in sizes:
        root = _FOLDER / str(size)
        config = build(root, size, args.samples)
        for take in takes:
            done = _removed(root, config, take)
            rows.append(
                (f"{take:,} of {size:,} segments", f"{done.cpu_seconds:.1f}", f"{done.seconds:.0f}")
            )
            print(*rows[-1], file=sys.stderr, flush=True)
        shutil.rmtree(root)
    text = table.markdown(["samples", "CPU s", "s"], rows)
    about = (
        f"A segment has {args.samples:,} samples in {SHARDS} shards. Those taken are of one "
        "segment; the samples of one line are out already in the next."
    )
    table.publish("removal", f"{text}\n\n{about}")


def _removed(root: Path, config: Path, take: int) -> measure.Measured:
    """List samples of the subset that are left, and apply the list."""
    parts = PARTITIONS[FILTERED_SUBSET].rows.paths(
        LocalLake.at(root / "lake").folder(FILTERED_SUBSET, NEEDLE)
    )
    urls = [url for part in parts for url in read_parquet(part, ["URL"])["URL"].to_pylist()]
    listed = root / "lake" / "removals" / f"{take}.txt"
    listed.parent.mkdir(exist_ok=True)
    step = max(1, len(urls) // take)
    listed.write_text("\n".join(urls[::step][:take]) + "\n", encoding="utf-8")
    return measure.run(
        [_COMMAND, "remove", "--config", config, "--apply"],
        env={"DAGSTER_HOME": str(root / "home")},
    )


if __name__ == "__main__":
    main()
