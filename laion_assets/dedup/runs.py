"""Claims on disk: runs of (uid, owner), sorted by uid.

A run is three files, one a column, so that a look-up reads the first halves of uids and hardly
ever anything else: ``<name>.high`` and ``<name>.low`` (the halves of the uid, uint64) and
``<name>.owner`` (uint32), all little-endian, 20 bytes a claim. A run is written once and never
changed. What does not belong here: who the owners are and which runs count.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE: Final = 1_000_000
"""Rows that a merge holds in memory, of all its runs together: 20 bytes each, and as much again
for their order."""

_COLUMNS: Final = {"high": "<u8", "low": "<u8", "owner": "<u4"}


class Run(NamedTuple):
    name: str
    level: int
    """How often its claims have been merged."""
    rows: int

    def columns(self, folder: Path) -> Columns:
        """Raises ``OSError`` if a file is not there, ``ValueError`` if it is not whole."""
        return Columns(*(self._column(folder, name) for name in _COLUMNS))

    def _column(self, folder: Path, name: str) -> NDArray[Any]:
        path, kind = folder / f"{self.name}.{name}", np.dtype(_COLUMNS[name])
        if path.stat().st_size != self.rows * kind.itemsize:
            raise ValueError(f"{path} does not hold {self.rows} rows")
        if not self.rows:
            return np.zeros(0, dtype=kind)
        column: NDArray[Any] = np.memmap(path, dtype=kind, mode="r")
        return column

    def delete(self, folder: Path) -> None:
        for name in _COLUMNS:
            (folder / f"{self.name}.{name}").unlink(missing_ok=True)


class Columns(NamedTuple):
    """A run's rows, memory-mapped."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    owner: NDArray[np.uint32]


class RunWriter:
    """Writes a run; its rows must come sorted by ``high``. Whole once the block has ended well."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._stack = ExitStack()
        self._rows = 0

    def __enter__(self) -> Self:
        self._files = {
            name: self._stack.enter_context((self._folder / f"{self._name}.{name}").open("wb"))
            for name in _COLUMNS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())

    def write(
        self, high: NDArray[np.uint64], low: NDArray[np.uint64], owner: NDArray[np.uint32]
    ) -> None:
        for column, (name, kind) in zip((high, low, owner), _COLUMNS.items(), strict=True):
            self._files[name].write(np.ascontiguousarray(column, dtype=kind).tobytes())
        self._rows += len(high)

    def run(self, level: int) -> Run:
        return Run(self._name, level, self._rows)


def held(
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
    columns: Columns,
    counts: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which of the uids, sorted by ``high``, the run holds for an owner that ``counts``.

    Reads no more of the run than lies near the uids. ``counts``: (owners,) bool.
    """
    found = np.zeros(len(high), dtype=np.bool_)
    if not len(high) or not len(columns.high):
        return found
    at = np.searchsorted(columns.high, high)
    left = np.flatnonzero(at < len(columns.high))
    # Claims with the same first half are neighbours; hardly ever is there more than one.
    while len(left):
        left = left[columns.high[at[left]] == high[left]]
        same = columns.low[at[left]] == low[left]
        found[left[same]] = counts[columns.owner[at[left[same]]]]
        left = left[~found[left]]
        at[left] += 1
        left = left[at[left] < len(columns.high)]
    return found


def merge(
    folder: Path, runs: Sequence[Run], name: str, counts: NDArray[np.bool_], at_once: int
) -> Run:
    """One run of the claims of ``runs`` whose owners ``counts``; the others' are left out."""
    sources = [run.columns(folder) for run in runs]
    steps = 1 + sum(run.rows for run in runs) // at_once
    # uids are digests, so that equal ranges of them hold about equally many.
    bounds = [step * (1 << 64) // steps for step in range(1, steps)]
    begins = [0] * len(sources)
    with RunWriter(folder, name) as writer:
        for bound in [*bounds, None]:
            stops = [
                len(source.high)
                if bound is None
                else int(np.searchsorted(source.high, np.uint64(bound)))
                for source in sources
            ]
            parts = [
                [column[begin:stop] for column in source]
                for source, begin, stop in zip(sources, begins, stops, strict=True)
            ]
            high, low, owner = (np.concatenate(column) for column in zip(*parts, strict=True))
            kept = counts[owner]
            high, low, owner = high[kept], low[kept], owner[kept]
            order = np.argsort(high, kind="stable")
            writer.write(high[order], low[order], owner[order])
            begins = stops
    return writer.run(1 + max(run.level for run in runs))
