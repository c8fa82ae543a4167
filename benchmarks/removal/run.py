"""``python -m benchmarks.removal.run``: samples are taken out of lakes of different sizes."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks import measure, table
from benchmarks.peer import WORK
from benchmarks.removal.make import NEEDLE, SHARDS, build, grow, put_into_store
from benchmarks.removal.rebuild import Step, rebuild
from laion_assets.lake import Lake, LocalLake, open_lake
from laion_assets.layout import FILTERED_SUBSET, PARTITIONS
from laion_assets.settings import load_settings
from laion_assets.tables import read_parquet

_FOLDER: Final = WORK / "removal"
_COMMAND: Final = Path(sys.executable).with_name("laion-assets")
_FOLDER_LAKE, _STORE_LAKE = "a folder", "a store"

Runs = dict[tuple[str, int, int], measure.Measured]
"""(where the lake is, samples taken, segments) -> the removal."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", default="10,100,1000", help="sizes, comma-separated")
    parser.add_argument("--store", default="10,100", help="sizes on the test store; empty for none")
    parser.add_argument("--samples", type=int, default=10_000, help="samples of a segment")
    parser.add_argument("--take", default="1,100,10000", help="samples to take, comma-separated")
    parser.add_argument(
        "--without-rebuild", action="store_true", help="leave out what the released tools do"
    )
    args = parser.parse_args()
    sizes, in_store, takes = (_numbers(of) for of in (args.segments, args.store, args.take))
    shutil.rmtree(_FOLDER, ignore_errors=True)
    template = _FOLDER / "two"
    crawl = build(template, args.samples)
    runs: Runs = {}
    with _store() as endpoint:
        for size in sorted({*sizes, *in_store}):
            root = _FOLDER / str(size)
            config = grow(template, root, size)
            if size in in_store:
                stored = put_into_store(root, f"s3://lake/{size}", endpoint)
                # Before the folder's, which changes the instance that they share: so a copy of it.
                shutil.copytree(root / "home", root / "home-store")
                _remove_all(runs, _STORE_LAKE, stored, root / "home-store", takes, size)
            if size in sizes:
                _remove_all(runs, _FOLDER_LAKE, config, root / "home", takes, size)
            shutil.rmtree(root)
    # Before what the peers' environments may take hours for, or fail in.
    table.publish("removal", _text(runs, takes, [], args.samples))
    if not args.without_rebuild:
        steps = rebuild(LocalLake.at(template / "lake"), crawl, _FOLDER / "rebuild")
        table.publish("removal", _text(runs, takes, steps, args.samples))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


@contextmanager
def _store() -> Iterator[str]:
    """The endpoint of an object store in a process of its own."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything"}
    command = [sys.executable, "-m", "deploy.cluster_demo.store", "--failing", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


def _remove_all(
    runs: Runs, where: str, config: Path, home: Path, takes: Sequence[int], size: int
) -> None:
    for take in takes:
        done = _removed(open_lake(load_settings(config).lake), config, home, take)
        runs[where, take, size] = done
        figures = f"{done.cpu_seconds:.1f} CPU s, {done.seconds:.0f} s"
        print(f"{where}: {take:,} of {size:,} segments: {figures}", file=sys.stderr, flush=True)


def _removed(lake: Lake, config: Path, home: Path, take: int) -> measure.Measured:
    """List samples of the subset that are left, and apply the list."""
    parts = PARTITIONS[FILTERED_SUBSET].rows.paths(lake.folder(FILTERED_SUBSET, NEEDLE))
    urls = [url for part in parts for url in read_parquet(part, ["URL"])["URL"].to_pylist()]
    step = max(1, len(urls) // take)
    text = "\n".join(urls[::step][:take]) + "\n"

    def write(root: Path) -> None:
        listed = root / "removals" / f"{take}.txt"
        listed.parent.mkdir(exist_ok=True)
        listed.write_text(text, encoding="utf-8")

    lake.update(f"removals/{take}.txt", write)
    return measure.run(
        [_COMMAND, "remove", "--config", config, "--apply"], env={"DAGSTER_HOME": str(home)}
    )


def _text(runs: Runs, takes: Sequence[int], steps: Sequence[Step], samples: int) -> str:
    places = [where for where in (_FOLDER_LAKE, _STORE_LAKE) if any(w == where for w, *_ in runs)]
    sizes = sorted({size for *_, size in runs})
    columns = ["CPU s", *(f"{size:,} segments" for size in sizes), "growth"]
    rows = [
        [
            f"{take:,} {'sample' if take == 1 else 'samples'}, {where}",
            *(_cell(runs.get((where, take, size))) for size in sizes),
            _growth({size: run for (w, t, size), run in runs.items() if (w, t) == (where, take)}),
        ]
        for where in places
        for take in takes
    ]
    text = table.markdown(columns, rows)
    text += (
        f"\n\nA segment has {samples:,} samples in {SHARDS} shards. Those taken are of one "
        "segment; the samples of one line are out already in the next. In brackets are seconds of "
        "the clock. Growth is the exponent from the smallest lake to the largest: 1 is in "
        "proportion, 0 not at all."
    )
    if not steps:
        return text
    total = sum(step.cpu_seconds for step in steps)
    rebuilt = [
        [what, f"{n:,}", f"{cpu:,.0f}"] for what, n, cpu in [*steps, Step("in all", 0, total)]
    ]
    rebuilt[-1][1] = ""
    text += "\n\n" + table.markdown(["rebuild of the segment", "measured on", "CPU s"], rebuilt)
    one = runs.get((_FOLDER_LAKE, min(takes), sizes[0]))
    if one:
        text += f"\n\nThat is {total / one.cpu_seconds:,.0f} times the first figure above."
    return text


def _cell(run: measure.Measured | None) -> str:
    return f"{run.cpu_seconds:.1f} ({run.seconds:.0f})" if run else ""


def _growth(runs: Mapping[int, measure.Measured]) -> str:
    if len(runs) < 2:
        return ""
    small, large = min(runs), max(runs)
    times = runs[large].cpu_seconds / runs[small].cpu_seconds
    return f"{math.log(times) / math.log(large / small):.2f}"


if __name__ == "__main__":
    main()
