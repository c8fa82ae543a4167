"""One way to hold a list, in its own process: ``ours`` or ``set``; prints JSON."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.removals.compiled import load
from laion_assets.removals.entries import Entries

_SINGLE = 100_000

Batch = Callable[[], int]
"""Looks up all rows; returns the number of listed ones."""
Single = Callable[[], list[bool]]


def _ours(kind: str, entries: Entries, rows: pa.Array, few: Sequence[str]) -> tuple[Batch, Single]:
    if kind == "sha256":
        none = pa.nulls(len(rows), pa.string())
        return (
            lambda: int(np.count_nonzero(entries.which_images(rows, none))),
            lambda: [entries.matches_image(value, "") for value in few],
        )
    urls = rows.to_pylist()
    return (
        lambda: int(np.count_nonzero(entries.which_urls(urls))),
        lambda: [entries.matches_url(url) for url in few],
    )


def _set(kind: str, entries: set[str], rows: pa.Array, few: Sequence[str]) -> tuple[Batch, Single]:
    values = rows.to_pylist()
    if kind == "sha256":
        return (
            lambda: sum(value in entries for value in values),
            lambda: [value in entries for value in few],
        )
    sha256 = hashlib.sha256
    return (
        lambda: sum(sha256(url.encode()).hexdigest() in entries for url in values),
        lambda: [sha256(url.encode()).hexdigest() in entries for url in few],
    )


def main(way: str, kind: str, folder: str, cache: str, asked: str) -> None:
    rows = pq.read_table(asked)[kind].combine_chunks()
    few = rows[:_SINGLE].to_pylist()
    started = time.perf_counter()
    if way == "ours":
        entries = load(Path(folder), Path(cache))
        loaded = time.perf_counter() - started
        batch, single = _ours(kind, entries, rows, few)
    else:
        with next(Path(folder).glob("*.txt")).open() as stream:
            names = {line.strip().rpartition(":")[2] for line in stream}
        loaded = time.perf_counter() - started
        batch, single = _set(kind, names, rows, few)
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        named = batch()
        rates.append(len(rows) / (time.perf_counter() - started))
    started = time.perf_counter()
    single()
    one_by_one = len(few) / (time.perf_counter() - started)
    print(
        json.dumps(
            {
                "load": loaded,
                "first": rates[0],
                "rate": sorted(rates)[1],
                "single": one_by_one,
                "named": named,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
