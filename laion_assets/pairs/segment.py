"""A whole segment: its WAT files in a process pool, then exact dedup across them.

Everything is made under ``out/.raw`` first: one part per WAT file, in which duplicates across
files are still there. When all are there, the rows to keep are found and the final parts written;
then ``.raw`` goes. Killed at any point, the next call finds the parts that are whole and goes on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.errors import TransientError
from laion_assets.files import atomic_path, causes, is_permanent
from laion_assets.funnel import StageCounts, total
from laion_assets.pairs.extract import PairWriter, extract_wat, read_counts
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.uids import UidBuckets
from laion_assets.processes import die_with
from laion_assets.progress import Progress

logger = logging.getLogger(__name__)

Fetch = Callable[[str, Path], None]


class SegmentError(TransientError):
    """WAT files of the segment could not be extracted; the message names the first and why.

    ``lasting``: for one of them trying again is of no use: the crawl source has no such file, or
    the disk is full.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


def extract_segment(
    wat_files: Sequence[str],
    fetch: Fetch,
    out: Path,
    rules: PairRules,
    *,
    crawl: str,
    segment: str,
    workers: int,
) -> list[StageCounts]:
    """Write ``out/part-00000.parquet`` …, one per WAT file, in their order; resume what is there.

    ``fetch(wat_file, to)`` must be picklable and copies a WAT file to a local path. Of pairs with
    the same (URL, TEXT) the first is kept, in the order of files and rows. Memory: about 60 bytes
    a pair of the largest WAT file for each worker, and one byte a pair of the segment.

    Returns the counts of stages ``wat`` and ``pairs``. Raises :class:`SegmentError` if a WAT file
    could not be fetched or read, after all the others are done.
    """
    raw, final = out / ".raw", [out / f"part-{i:05d}.parquet" for i in range(len(wat_files))]
    if not all(path.exists() for path in final):
        raw.mkdir(exist_ok=True)
        parts = [raw / path.name for path in final]
        _extract_missing(wat_files, fetch, parts, rules, crawl, segment, workers)
        _write_final(parts, final, raw / "uids")
    _remove_work_files(out)
    return segment_counts(final)


def segment_counts(parts: Sequence[Path]) -> list[StageCounts]:
    """The counts of stages ``wat`` and ``pairs`` that the parts hold."""
    counts = [read_counts(path) for path in parts]
    return [
        total("wat", (wat for wat, _ in counts)),
        total("pairs", (pairs for _, pairs in counts)),
    ]


def _remove_work_files(out: Path) -> None:
    shutil.rmtree(out / ".raw", ignore_errors=True)
    for torn in out.glob(".*.part-*.parquet"):  # of a run killed while it wrote
        torn.unlink()


def _extract_missing(
    wat_files: Sequence[str],
    fetch: Fetch,
    parts: Sequence[Path],
    rules: PairRules,
    crawl: str,
    segment: str,
    workers: int,
) -> None:
    missing = [i for i, part in enumerate(parts) if not part.exists()]
    progress = Progress(
        f"pairs of {crawl}|{segment}",
        "WAT files",
        len(parts),
        logger,
        resumed=len(parts) - len(missing),
    )
    if not missing:
        return
    failed: dict[int, str] = {}
    lasting = False
    # Spawned, not forked: the caller may have threads, and forked ones would hold their locks.
    with ProcessPoolExecutor(
        min(workers, len(missing)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=die_with,
        initargs=(os.getpid(),),
    ) as pool:
        futures: dict[Future[str], int] = {
            pool.submit(_fetch_and_extract, wat_files[i], fetch, parts[i], rules, crawl, segment): i
            for i in missing
        }
        try:
            for future in as_completed(futures):
                i = futures[future]
                try:
                    progress.advance(note=future.result())
                except BrokenProcessPool:
                    failed[i] = "a worker process died (killed, or out of memory)"
                except _WatError as error:
                    failed[i] = error.message
                    lasting |= error.lasting
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        first = min(failed)
        raise SegmentError(
            f"{len(failed)} of the {len(parts)} WAT files of {crawl}|{segment} could not be "
            f"extracted; the first is {wat_files[first]}: {failed[first]}",
            lasting=lasting,
        )


class _WatError(Exception):
    """A message and whether it lasts, so that it survives pickling whatever was raised."""

    def __init__(self, message: str, lasting: bool) -> None:
        super().__init__(message, lasting)
        self.message, self.lasting = message, lasting


def _fetch_and_extract(
    wat_file: str, fetch: Fetch, part: Path, rules: PairRules, crawl: str, segment: str
) -> str:
    """In a worker process; returns a line for the log."""
    local = part.with_suffix(".warc.wat.gz")
    try:
        fetch(wat_file, local)
        _, pairs = extract_wat(local, part, rules, crawl=crawl, segment=segment, wat_file=wat_file)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other WAT files go on
        lasting = isinstance(error, FileNotFoundError) or any(map(is_permanent, causes(error)))
        raise _WatError(f"{type(error).__name__}: {error}", lasting) from None
    finally:
        local.unlink(missing_ok=True)
    return f"{pairs.kept:,} pairs of {wat_file.rpartition('/')[2]}"


def _write_final(parts: Sequence[Path], final: Sequence[Path], scratch: Path) -> None:
    rows = [pq.read_metadata(part).num_rows for part in parts]
    keep = _first_rows(parts, sum(rows), scratch)
    logger.info(f"{int(keep.sum()):,} of {len(keep):,} pairs are the first of their (URL, TEXT)")
    stops = list(accumulate(rows))
    for part, target, n, stop in zip(parts, final, rows, stops, strict=True):
        if not target.exists():
            _write_kept(part, target, keep[stop - n : stop])


def _first_rows(parts: Sequence[Path], rows: int, scratch: Path) -> NDArray[np.bool_]:
    """Which rows, numbered through all parts, are the first with their uid."""
    buckets = UidBuckets(scratch, rows)
    buckets.add_parts(parts)
    keep = np.ones(rows, dtype=np.bool_)
    for bucket in buckets:
        keep[bucket.repeated_rows()] = False
    buckets.remove()
    return keep


def _write_kept(part: Path, target: Path, keep: NDArray[np.bool_]) -> None:
    wat, pairs = read_counts(part)
    dropped = len(keep) - int(keep.sum())
    pairs.kept -= dropped
    pairs.n_in -= dropped
    pairs.reject("duplicate", n=dropped)
    with (
        pq.ParquetFile(part) as file,
        atomic_path(target) as beside,
        PairWriter(beside) as writer,
    ):
        at = 0
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number)
            writer.write(rows.filter(pa.array(keep[at : at + rows.num_rows])))
            at += rows.num_rows
        writer.note_counts([wat, pairs])
