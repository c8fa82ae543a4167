"""Extract a whole segment: its WAT files in a process pool, then exact dedup across them.

Everything is made under ``out/.raw`` first: one part per WAT file, which still holds duplicates
across files. When all parts are present, the rows to keep are found and joined into large parts,
which say of which WAT files they are; then ``.raw`` is deleted. After a kill at any point, the next
call resumes from the whole parts.

Row ranges of a URL list are made into pairs in the same way: they take the place of WAT files. The
list's own columns go into files beside the parts, or outside of a lake into the one part itself.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Final, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.errors import PermanentError, TransientError
from laion_assets.files import causes, is_permanent
from laion_assets.funnel import StageCounts, total
from laion_assets.layout import OWN_COLUMNS, PAIR_PARQUET, PARTITIONS
from laion_assets.pairs import many_texts
from laion_assets.pairs.extract import (
    OwnColumnsWriter,
    PairWriter,
    extract_wat,
    own_columns_path,
    read_counts,
)
from laion_assets.pairs.many_texts import rows_of_many_texts
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.uids import UidBuckets
from laion_assets.schemas import PAIRS
from laion_assets.tables import ROWS_PER_PART, key_in, part_path, rows_in, spans
from laion_assets.work import (
    PRELOADED,
    Progress,
    die_with_first_process,
    forked_from_server,
    ignores_ctrl_c,
)

logger = logging.getLogger(__name__)

SPAN_KEY: Final = b"laion_assets.wat_files"
"""Key, in a part's parquet metadata, of the numbers of the WAT files whose pairs it has: from one
to before another."""

# What becomes of a row when the parts are joined.
_KEPT, _DUPLICATE, _MANY_TEXTS = np.arange(3, dtype=np.int8)

Fetch = Callable[[str, Path], None]


class Extract(Protocol):
    """Writes the pairs of one WAT file, or what stands for one, as :func:`.extract_wat` does.

    A process gets it pickled.
    """

    def __call__(
        self, wat: Path, out: Path, rules: PairRules, *, crawl: str, segment: str, wat_file: str
    ) -> tuple[StageCounts, StageCounts]: ...


class SegmentError(TransientError, RuntimeError):
    """WAT files of the segment could not be extracted; the message names the first and why."""


class PermanentSegmentError(PermanentError, RuntimeError):
    """The same, and one of the files fails again: the source does not have it, the disk is full."""


def extract_segment(
    wat_files: Sequence[str],
    fetch: Fetch,
    out: Path,
    rules: PairRules,
    *,
    crawl: str,
    segment: str,
    workers: int,
    extract: Extract = extract_wat,
    kind: str = "WAT files",
    rows_per_part: int | None = None,
) -> list[StageCounts]:
    """Write the pairs of WAT files, in their order, to ``out/part-00000.parquet`` and so on; resume
    a killed call.

    A part has the pairs of whole WAT files, and ends with the one that makes it
    ``rows_per_part`` rows, :data:`~laion_assets.tables.ROWS_PER_PART` by default.
    ``fetch(wat_file, to)`` copies a WAT file to a local path, in threads of this process: up to two
    files for each worker. ``extract`` makes its pairs; ``kind`` is what messages call it. Of pairs
    with the same (URL, TEXT) the first is kept, in the order of files and rows. Memory: about 60
    bytes a pair of the largest WAT file for each worker, and a few bytes a pair of the segment (a
    dozen more with ``max_texts_per_url``).

    Returns the counts of stages ``wat`` and ``pairs``. Raises :class:`SegmentError` or
    :class:`PermanentSegmentError` if a WAT file could not be fetched or read, after all the others
    are done.
    """
    if not _is_whole(out, len(wat_files)):
        raw = out / ".raw"
        raw.mkdir(exist_ok=True)
        parts = [part_path(raw, number) for number in range(len(wat_files))]
        of_segment = _Segment(crawl, segment, rules, extract, kind)
        _extract_missing(wat_files, fetch, parts, of_segment, workers)
        most_texts = rules.max_texts_per_url
        _join(parts, out, raw / "uids", most_texts, rows_per_part or ROWS_PER_PART)
    _remove_work_files(out)
    return segment_counts(_parts(out))


@dataclass(frozen=True)
class _Segment:
    """What all WAT files of a segment share."""

    crawl: str
    segment: str
    rules: PairRules
    extract: Extract
    kind: str

    def __str__(self) -> str:
        return f"{self.crawl}|{self.segment}" if self.crawl else "a list"


def _parts(folder: Path) -> list[Path]:
    return PARTITIONS[PAIR_PARQUET].rows.paths(folder)


def _span(part: Path) -> tuple[int, int]:
    """Which WAT files the part has the pairs of: from one number to before another."""
    begin, end = json.loads(pq.read_metadata(part).metadata[SPAN_KEY])
    return begin, end


def _is_whole(out: Path, wats: int) -> bool:
    """Whether the parts are those of all WAT files."""
    end = -1
    for part in _parts(out):
        begin, next_end = _span(part)
        if begin != max(end, 0):
            return False
        end = next_end
    return end == wats


def segment_counts(parts: Sequence[Path]) -> list[StageCounts]:
    """The counts of stages ``wat`` and ``pairs`` that the parts hold."""
    counts = [read_counts(path) for path in parts]
    return [
        total("wat", (wat for wat, _ in counts)),
        total("pairs", (pairs for _, pairs in counts)),
    ]


def _remove_work_files(out: Path) -> None:
    shutil.rmtree(out / ".raw", ignore_errors=True)
    # Left by a run that was killed while it wrote.
    for torn in (*out.glob(".*.part-*.parquet"), *(out / OWN_COLUMNS).glob(".*")):
        torn.unlink()


def _extract_missing(
    wat_files: Sequence[str],
    fetch: Fetch,
    parts: Sequence[Path],
    of_segment: _Segment,
    workers: int,
) -> None:
    missing = [i for i, part in enumerate(parts) if not part.exists()]
    progress = Progress(
        f"pairs of {of_segment}",
        of_segment.kind,
        len(parts),
        logger,
        resumed=len(parts) - len(missing),
    )
    if not missing:
        return
    failed: dict[int, str] = {}
    permanent = False
    # Not forked from the caller, which may have threads: copies would hold their locks.
    with (
        ProcessPoolExecutor(
            min(workers, len(missing)),
            mp_context=forked_from_server(PRELOADED),
            initializer=partial(die_with_first_process, ignoring_ctrl_c=ignores_ctrl_c()),
        ) as pool,
        # Half of them wait for a process while the others fetch what it reads next. They are
        # threads of one process, which waits as one where the source asks for fewer requests.
        ThreadPoolExecutor(2 * workers, thread_name_prefix="wat") as fetchers,
    ):
        # All processes are started here: one that a thread starts while another is found dead would
        # be waited for without end (CPython 3.11).
        for _ in range(min(workers, len(missing))):
            pool.submit(int)
        broken = Event()

        def make(i: int) -> str:
            if broken.is_set():
                raise BrokenProcessPool
            return _made(wat_files[i], fetch, pool, parts[i], of_segment)

        futures: dict[Future[str], int] = {fetchers.submit(make, i): i for i in missing}
        try:
            for future in as_completed(futures):
                i = futures[future]
                try:
                    progress.advance(note=future.result())
                except BrokenProcessPool:
                    broken.set()  # nothing more is fetched: no process would read it
                    failed[i] = "a worker process died (killed, or out of memory)"
                except _WatError as error:
                    failed[i] = error.message
                    permanent |= error.permanent
        except BaseException:
            fetchers.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        first = min(failed)
        kind = PermanentSegmentError if permanent else SegmentError
        raise kind(
            f"{len(failed)} of the {len(parts)} {of_segment.kind} of {of_segment} could not be "
            f"extracted; the first is {wat_files[first]}: {failed[first]}"
        )


class _WatError(Exception):
    """A worker's error as a message and its kind, which can be pickled whatever was raised."""

    def __init__(self, message: str, permanent: bool) -> None:
        super().__init__(message, permanent)
        self.message, self.permanent = message, permanent


def _made(
    wat_file: str, fetch: Fetch, pool: ProcessPoolExecutor, part: Path, of_segment: _Segment
) -> str:
    """Fetch a WAT file, and let a process make its part; return a line for the log."""
    local = part.with_suffix(".warc.wat.gz")
    try:
        with _as_wat_error():
            fetch(wat_file, local)
        kept = pool.submit(_extract, local, part, of_segment, wat_file).result()
    finally:
        local.unlink(missing_ok=True)
    return f"{kept:,} pairs of {wat_file.rpartition('/')[2]}"


def _extract(wat: Path, part: Path, of: _Segment, wat_file: str) -> int:
    """Make one part, in a worker process; return the number of its pairs."""
    place = {"crawl": of.crawl, "segment": of.segment, "wat_file": wat_file}
    with _as_wat_error():
        _, pairs = of.extract(wat, part, of.rules, **place)
    return pairs.kept


@contextmanager
def _as_wat_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the other WAT files go on
        permanent = isinstance(error, FileNotFoundError) or any(map(is_permanent, causes(error)))
        raise _WatError(f"{type(error).__name__}: {error}", permanent) from None


def _join(
    raw: Sequence[Path], out: Path, scratch: Path, most_texts: int, rows_per_part: int
) -> None:
    """Write the first rows of their (URL, TEXT) from whole WAT files' parts into few large parts,
    but for those of URLs with more than ``most_texts`` texts, unless that is 0.

    A part that an earlier call has written stays.
    """
    rows = [rows_in(part) for part in raw]
    first = _first_rows(raw, sum(rows), scratch)
    logger.info(f"{int(first.sum()):,} of {len(first):,} pairs are the first of their (URL, TEXT)")
    ends = np.where(first, _KEPT, _DUPLICATE)
    ends[rows_of_many_texts(raw, first, most_texts, scratch)] = _MANY_TEXTS
    of_wat = np.split(ends, np.cumsum(rows))[:-1]
    made_of = spans([int((end == _KEPT).sum()) for end in of_wat], rows_per_part)
    for number, span in enumerate(made_of):
        target = part_path(out, number)
        if not (target.exists() and _span(target) == span):
            _write_part(raw[slice(*span)], of_wat[slice(*span)], span, target)
    for beyond in _parts(out)[len(made_of) :]:
        beyond.unlink()
        own_columns_path(beyond).unlink(missing_ok=True)


def _first_rows(parts: Sequence[Path], rows: int, scratch: Path) -> NDArray[np.bool_]:
    """(rows,) bool: which rows, numbered through all parts, are the first with their uid."""
    buckets = UidBuckets(scratch, rows)
    buckets.add_parts(parts)
    keep = np.ones(rows, dtype=np.bool_)
    for bucket in buckets:
        keep[bucket.repeated_rows()] = False
    buckets.remove()
    return keep


def _write_part(
    raw: Sequence[Path], ends: Sequence[NDArray[np.int8]], span: tuple[int, int], target: Path
) -> None:
    counts = [StageCounts("wat"), StageCounts("pairs")]
    # A list's ranges have its own columns, all the same ones, behind those of pairs.
    more = [
        field for part in raw[:1] for field in pq.read_schema(part) if field.name not in PAIRS.names
    ]
    if more and key_in(target):
        with OwnColumnsWriter(target, more) as own:
            for part, end in zip(raw, ends, strict=True):
                own.copy(part, end == _KEPT)
        more = []
    with PairWriter(target, more) as writer:
        for part, end in zip(raw, ends, strict=True):
            writer.copy(part, end == _KEPT)
            wat, pairs = read_counts(part)
            pairs.drop("duplicate", int((end == _DUPLICATE).sum()))
            pairs.drop(many_texts.REASON, int((end == _MANY_TEXTS).sum()))
            counts[0].add(wat)
            counts[1].add(pairs)
        writer.note_counts(counts)
        writer.note(SPAN_KEY, json.dumps(span))
