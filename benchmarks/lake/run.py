"""``python -m benchmarks.lake.run``: lakes of 100, 1,000 and 10,000 partitions of each asset, and
what people do with them."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import table
from benchmarks.lake.ask import TASKS
from benchmarks.lake.make import Sizes, build
from benchmarks.peer import WORK
from laion_assets.layout import SegmentKey

_FOLDER: Final = WORK / "lake"
_OPENED: Final = ("strace", "--follow-forks", "--trace=openat,open", "--successful-only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", default="100,1000,10000", help="sizes, comma-separated")
    parser.add_argument("--keep", action="store_true", help="keep the lakes for a next run")
    args = parser.parse_args()
    sizes = [int(size) for size in args.partitions.split(",")]
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for size in sizes:
        root = _FOLDER / f"{size}"
        needle = _built(root, size)
        found[size] = {}
        for name in TASKS:
            found[size][name] = _measured(name, root, needle)
            print(f"{size:6} {name:32} {found[size][name]}", file=sys.stderr, flush=True)
        if not args.keep:
            shutil.rmtree(root)
    table.publish("lake", _text(sizes, found))


def _built(root: Path, partitions: int) -> SegmentKey:
    """Make the lake, or take the one of an earlier run."""
    note = root / ".needle"
    if not note.exists():
        shutil.rmtree(root, ignore_errors=True)
        started = time.monotonic()
        needle = build(root, partitions, Sizes())
        seconds = time.monotonic() - started
        print(f"a lake of {partitions:,} partitions in {seconds:.0f} s", file=sys.stderr)
        note.write_text(str(needle), encoding="utf-8")
    return SegmentKey.parse(note.read_text(encoding="utf-8"))


def _measured(name: str, root: Path, needle: SegmentKey) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.lake.ask", name, str(root), str(needle)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{name}: {ran.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return measured | {"files": _files_opened(command, root)}


def _files_opened(command: Sequence[str], root: Path) -> int | None:
    """How many of the lake's files a second run opens, by strace; None where that is missing."""
    if shutil.which(_OPENED[0]) is None:
        return None
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as log:
        subprocess.run([*_OPENED, "-o", log.name, *command], capture_output=True, check=True)
        return sum(f'"{root}/' in line and "O_DIRECTORY" not in line for line in log)


def _text(sizes: Sequence[int], found: dict[int, dict[str, dict[str, Any]]]) -> str:
    rows = []
    for name in TASKS:
        measured = [found[size][name] for size in sizes]
        last = measured[-1]
        rows.append(
            [
                name,
                *(f"{one['cpu_s']:.2f}" for one in measured),
                _exponent(sizes, [one["cpu_s"] for one in measured]),
                f"{last['peak_mb']:,.0f}",
                "" if last["files"] is None else f"{last['files']:,}",
            ]
        )
    heads = ["CPU s", *(f"{size:,} partitions" for size in sizes), "growth", "peak MB", "files"]
    of = Sizes()
    return (
        table.markdown(heads, rows)
        + f"\n\nA segment has {of.pairs:,} pairs, {of.unique:,} of them asked for, {of.images:,} "
        f"images and {of.kept:,} kept, with vectors of {of.dim} dimensions. Growth is the exponent "
        "from the smallest lake to the largest: 1 is in proportion, 0 not at all. Memory (of the "
        "whole process) and opened files are those of the largest."
    )


def _exponent(sizes: Sequence[int], costs: Sequence[float]) -> str:
    if len(sizes) < 2 or min(costs) <= 0:
        return ""
    return f"{math.log(costs[-1] / costs[0]) / math.log(sizes[-1] / sizes[0]):.2f}"


if __name__ == "__main__":
    main()
