"""Claims on disk: sorted runs of (uid, owner), in the order of the uids.

A sorted run is three files, one per column, so that a look-up reads the first halves of uids and
hardly ever anything else: ``<name>.high`` and ``<name>.low`` (the halves of the uid, uint64) and
``<name>.owner`` (uint32), all little-endian, 20 bytes a claim. A sorted run is written once and
never changed. What does not belong here: who the owners are, and which sorted runs are in use.
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
"""Rows that a merge holds in memory, of all its sorted runs together: 20 bytes each, and as much
again for their order."""

_COLUMNS: Final = {"high": "<u8", "low": "<u8", "owner": "<u4"}


class SortedRun(NamedTuple):
    """One sorted run: the name of its files, and how many claims they hold."""

    name: str
    level: int
    """How often its claims have been merged."""
    rows: int

    def columns(self, folder: Path) -> Columns:
        """Map its files. Raises ``OSError`` if one is missing, ``ValueError`` if one is cut."""
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
        """Delete its files."""
        for name in _COLUMNS:
            (folder / f"{self.name}.{name}").unlink(missing_ok=True)


class Columns(NamedTuple):
    """A sorted run's rows, memory-mapped; (rows,) each."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    owner: NDArray[np.uint32]


class SortedRunWriter:
    """Writes a sorted run, which is whole once the block ends without an error."""

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
        """Append claims, (n,) each; all claims must come sorted by ``high``."""
        for column, (name, kind) in zip((high, low, owner), _COLUMNS.items(), strict=True):
            self._files[name].write(np.ascontiguousarray(column, dtype=kind).tobytes())
        self._rows += len(high)

    def run(self, level: int) -> SortedRun:
        """The sorted run that was written."""
        return SortedRun(self._name, level, self._rows)


def held(
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
    columns: Columns,
    counts: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """(n,) bool: which uids the sorted run holds for an owner that ``counts``.

    ``high``, ``low``: (n,) each, sorted by ``high``. ``counts``: (owners,) bool. Reads only what
    lies near the uids.
    """
    found = np.zeros(len(high), dtype=np.bool_)
    if not len(high) or not len(columns.high):
        return found
    at = np.searchsorted(columns.high, high)
    left = np.flatnonzero(at < len(columns.high))
    # Claims with the same first half are neighbours; there is hardly ever more than one.
    while len(left):
        left = left[columns.high[at[left]] == high[left]]
        same = columns.low[at[left]] == low[left]
        found[left[same]] = counts[columns.owner[at[left[same]]]]
        left = left[~found[left]]
        at[left] += 1
        left = left[at[left] < len(columns.high)]
    return found


def merge(
    folder: Path, runs: Sequence[SortedRun], name: str, counts: NDArray[np.bool_], at_once: int
) -> SortedRun:
    """Merge the claims of ``runs`` whose owners ``counts``; leave the others out.

    ``counts``: (owners,) bool. ``at_once``: about how many rows are held in memory.
    """
    sources = [run.columns(folder) for run in runs]
    steps = 1 + sum(run.rows for run in runs) // at_once
    # uids are digests, so equal ranges hold about equally many.
    bounds = [step * (1 << 64) // steps for step in range(1, steps)]
    begins = [0] * len(sources)
    with SortedRunWriter(folder, name) as writer:
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
