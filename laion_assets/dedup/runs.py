"""Claims on disk: sorted runs of (uid, owner), in the order of the uids.

A sorted run is three files, written once and never changed. ``<name>.claims`` has the claims in
:mod:`.pages`, 20 bytes each: in a page first halves of uids, then second halves (uint64), then
owners (uint32), all little-endian. ``<name>.first`` has the first half that begins each page.
``<name>.filter`` is the :mod:`.filter` of the first halves. What does not belong here: who the
owners are, and which sorted runs are in use.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from laion_assets.dedup.filter import Filter, FilterWriter
from laion_assets.dedup.pages import DamagedError, Pages, PagesWriter
from laion_assets.files import FileWriter

ROWS_AT_ONCE: Final = 1_000_000
"""Rows that a merge holds in memory, of all its sorted runs together: 20 bytes each, and as much
again for their order."""

_PAGE_WORDS: Final = 512
_PER_PAGE: Final = 204
_NEXT: Final = 1
"""Word of a page with the first half that begins the next one."""
_HIGH: Final = slice(2, 2 + _PER_PAGE)
_LOW: Final = slice(_HIGH.stop, _HIGH.stop + _PER_PAGE)
_OWNER: Final = slice(_LOW.stop, _PAGE_WORDS)
_FILES: Final = ("claims", "first", "filter")
_LARGEST: Final = np.iinfo(np.uint64).max


class SortedRun(NamedTuple):
    """One sorted run: its place among the others, and what its files hold."""

    newest: int
    """Largest owner number that any of its claims had."""
    level: int
    """How often its claims have been merged."""
    rows: int
    room: int
    """Number of claims that its filter is made for: those that it was merged of."""

    @property
    def name(self) -> str:
        return f"run-{self.newest:08d}-{self.level}"

    def paths(self, folder: Path) -> list[Path]:
        return [folder / f"{self.name}.{kind}" for kind in _FILES]


class Columns(NamedTuple):
    """Some claims, (n,) each, sorted by ``high``."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    owner: NDArray[np.uint32]

    def take(self, rows: slice | NDArray[np.int64]) -> Columns:
        return Columns(self.high[rows], self.low[rows], self.owner[rows])


class SortedRunWriter(FileWriter):
    """Writes a sorted run, which is whole once the block ends without an error.

    ``room``: at most how many claims will come.
    """

    def __init__(self, folder: Path, newest: int, level: int, room: int) -> None:
        super().__init__()
        self._run = SortedRun(newest, level, 0, room)
        self._waiting = _empty()
        claims, self._first_path, filtered = self._run.paths(folder)
        self._pages, self._filter = PagesWriter(claims), FilterWriter(filtered, room)

    def __enter__(self) -> Self:
        self._first = self._stack.enter_context(self._first_path.open("wb"))
        self._stack.enter_context(self._pages)
        self._stack.enter_context(self._filter)
        return self

    def _finish(self) -> None:
        if len(self._waiting.high):
            missing = _PER_PAGE - len(self._waiting.high)
            padding = Columns(
                np.full(missing, _LARGEST, dtype=np.uint64),
                np.zeros(missing, dtype=np.uint64),
                np.zeros(missing, dtype=np.uint32),
            )
            self._write(_joined([self._waiting, padding]), np.array([_LARGEST]))
        self._first.flush()
        os.fsync(self._first.fileno())

    def write(self, claims: Columns) -> None:
        """Append claims; all claims must come sorted by ``high``."""
        self._filter.add(claims.high)
        self._run = self._run._replace(rows=self._run.rows + len(claims.high))
        waiting = _joined([self._waiting, claims])
        # A page says how the next one begins, so the last one waits for that.
        begins = waiting.high[_PER_PAGE::_PER_PAGE]
        whole = len(begins) * _PER_PAGE
        self._write(waiting.take(slice(whole)), begins)
        self._waiting = waiting.take(slice(whole, None))

    def _write(self, claims: Columns, begins_next: NDArray[np.uint64]) -> None:
        pages = np.empty((len(begins_next), _PAGE_WORDS), dtype="<u8")
        pages[:, _NEXT] = begins_next
        pages[:, _HIGH] = claims.high.reshape(-1, _PER_PAGE)
        pages[:, _LOW] = claims.low.reshape(-1, _PER_PAGE)
        pages[:, _OWNER].view("<u4")[:] = claims.owner.reshape(-1, _PER_PAGE)
        self._pages.write(pages)
        self._first.write(pages[:, _HIGH.start].tobytes())

    def run(self) -> SortedRun:
        """The sorted run that was written."""
        return self._run


class OpenRun:
    """A sorted run opened for look-ups, also while others delete its files.

    Raises ``OSError`` if a file is missing and :class:`DamagedError` if one is cut.
    """

    def __init__(self, folder: Path, run: SortedRun) -> None:
        self.run = run
        self._count = -(-run.rows // _PER_PAGE)
        claims, first, filtered = run.paths(folder)
        with ExitStack() as stack:
            self._pages = stack.enter_context(closing(Pages(claims, self._count, _PAGE_WORDS)))
            self._filter = stack.enter_context(closing(Filter(filtered, run.room)))
            self._first = np.zeros(0, dtype=np.uint64)
            if self._count:
                self._first = np.memmap(first, dtype="<u8", mode="r")
            if len(self._first) != self._count:
                raise DamagedError(f"{first.name} does not have {self._count:,} rows")
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def find(
        self, high: NDArray[np.uint64], marked: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], Columns]:
        """Look up first halves of uids: the claims that have them, and the index of each one's.

        ``high``: (n,), sorted; ``marked``: its :func:`~laion_assets.dedup.filter.marks`. Reads only
        what lies near. Raises :class:`DamagedError`.
        """
        index = self._filter.passing(high, marked)
        indices, found = [np.zeros(0, dtype=np.int64)], [_empty()]
        for step in self._pages.in_steps(len(index) if self._count else 0):
            which, claims = self._find(high[index[step]])
            indices.append(index[step][which])
            found.append(claims)
        # Other runs are asked next, and each would keep some megabytes.
        self._pages.forget()
        self._filter.forget()
        return np.concatenate(indices), _joined(found)

    def _find(self, high: NDArray[np.uint64]) -> tuple[NDArray[np.int64], Columns]:
        first, last = self._pages_of(high)
        pages, numbers, _ = self._pages.take(np.unique(_ranges(first, last - first + 1)))
        begins, ends = np.searchsorted(numbers, first), np.searchsorted(numbers, last)
        # `first` has no checksums; that the pages hold these keys is proved by the pages.
        proved = (first == 0) | (pages[begins, _HIGH.start] < high)
        proved &= (last == self._count - 1) | (pages[ends, _NEXT] > high)
        if not proved.all():
            raise DamagedError(f"{self.run.name}.first is not as it was written")
        held = pages[:, _HIGH].reshape(-1)
        if numbers[-1] == self._count - 1:
            held = held[: len(held) - self._count * _PER_PAGE + self.run.rows]
        begin, end = np.searchsorted(held, high), np.searchsorted(held, high, "right")
        page, row = np.divmod(_ranges(begin, end - begin), _PER_PAGE)
        which = np.repeat(np.arange(len(high)), end - begin)
        owner = pages[:, _OWNER].view("<u4")[page, row]
        return which, Columns(high[which], pages[page, _LOW.start + row], owner)

    def _pages_of(self, high: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first and the last page that may hold each key."""
        first = np.maximum(np.searchsorted(self._first, high) - 1, 0)
        last = np.maximum(np.searchsorted(self._first, high, "right") - 1, 0)
        return first, last

    def between(self, begin: int, end: int) -> Columns:
        """The claims with ``begin <= high < end``. Raises :class:`DamagedError`."""
        bounds = np.array([begin, end - 1], dtype=np.uint64)
        if not self._count:
            return _empty()
        first, last = self._pages_of(bounds)
        pages, numbers, _ = self._pages.take(np.arange(first[0], last[1] + 1))
        claims = Columns(
            pages[:, _HIGH].reshape(-1),
            pages[:, _LOW].reshape(-1),
            pages[:, _OWNER].view("<u4").reshape(-1),
        )
        stop = int(np.searchsorted(claims.high, bounds[1], "right"))
        if numbers[-1] == self._count - 1:
            stop = min(stop, len(claims.high) - self._count * _PER_PAGE + self.run.rows)
        return claims.take(slice(int(np.searchsorted(claims.high, bounds[0])), stop))


def merge(
    folder: Path,
    runs: Sequence[SortedRun],
    into: Path,
    counts: NDArray[np.bool_],
    at_once: int,
) -> SortedRun:
    """Merge claims of ``folder`` whose owners ``counts`` into a run in the folder ``into``.

    ``counts``: (owners,) bool. ``at_once``: about how many rows are held in memory. Raises
    :class:`DamagedError`.
    """
    rows = sum(run.rows for run in runs)
    newest, level = max(run.newest for run in runs), 1 + max(run.level for run in runs)
    steps = 1 + rows // at_once
    read = 0
    with ExitStack() as stack, SortedRunWriter(into, newest, level, rows) as writer:
        sources = [stack.enter_context(closing(OpenRun(folder, run))) for run in runs]
        for step in range(steps):
            # uids are digests, so equal ranges hold about equally many.
            begin, end = (number * (1 << 64) // steps for number in (step, step + 1))
            claims = _joined([source.between(begin, end) for source in sources])
            read += len(claims.high)
            kept = np.flatnonzero(counts[claims.owner])
            kept = kept[np.argsort(claims.high[kept], kind="stable")]
            writer.write(claims.take(kept))
        if read != rows:
            names = ", ".join(f"{run.name}.first" for run in runs)
            raise DamagedError(f"one of {names} is not as it was written")
    return writer.run()


def _ranges(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranges, one range after another."""
    shift = begins - (np.cumsum(lengths) - lengths)
    numbers: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(shift, lengths)
    return numbers


def _empty() -> Columns:
    none = np.zeros(0, dtype=np.uint64)
    return Columns(none, none, none.astype(np.uint32))


def _joined(claims: Sequence[Columns]) -> Columns:
    return Columns(
        np.concatenate([some.high for some in claims]),
        np.concatenate([some.low for some in claims]),
        np.concatenate([some.owner for some in claims]),
    )
