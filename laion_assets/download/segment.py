"""A segment's pairs to webdataset shards, as img2dataset writes them.

A shard is its tar, then its parquet, then its ``_stats.json``, each published whole: it is done
when the last is there and holds the digest of its rows and of what decides their outcome. What
does not belong here: the lake's partitions, and when to try a failed row again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.download import img2dataset_parts
from laion_assets.download.addresses import Resolve, system_resolve
from laion_assets.download.fetch import Fetcher
from laion_assets.download.images import Checksums, ImageMaker
from laion_assets.download.options import DownloadOptions
from laion_assets.download.refused import FetchRefused, ImageRefused
from laion_assets.files import fsync_directory, fsync_file, write_json
from laion_assets.funnel import StageCounts, total
from laion_assets.progress import Log, Progress
from laion_assets.removals.lists import Entries

SUCCESS: Final = "success"
FAILED_TO_DOWNLOAD: Final = "failed_to_download"
FAILED_TO_RESIZE: Final = "failed_to_resize"
"""img2dataset's three statuses; the last is for all that is found wrong with the bytes."""

NETWORK: Final = frozenset({"dns", "connect", "timeout"})
"""Reasons that a machine without network gives."""

_STATS: Final = "_stats.json"
_MAKING: Final = ".making-"


@dataclass(frozen=True)
class Outcome:
    """What became of one row. The fields after ``encoded`` are columns of the shard's parquet."""

    encoded: bytes | None
    status: str
    error_message: str | None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    sha256: str | None = None
    md5: str | None = None
    reason: str | None = None


OUTCOME_SCHEMA: Final = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("md5", pa.string()),
        ("reason", pa.string()),
    ]
)
_OUTCOME_COLUMNS: Final = tuple(field.name for field in fields(Outcome))[1:]


def download_segment(
    pairs: Path,
    out: Path,
    options: DownloadOptions,
    *,
    removals: Entries,
    blocklists: Entries,
    log: Log,
    resolve: Resolve = system_resolve,
) -> StageCounts:
    """Download the images of ``pairs`` into ``out``, going on where a killed run stopped.

    ``pairs``: a folder of ``part-*.parquet`` or one parquet file, with columns ``url`` and
    ``text``; every other column is carried along. ``out``: an own folder, given to one process at
    a time. A URL that a list names, by itself or by its host, is not asked for, nor is one that a
    redirect leads to; an image that a list names by its hash is not kept. Raises ``ValueError``
    for pairs without those columns. Not for a thread that already runs an event loop.
    """
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(f"{_MAKING}*"):
        shutil.rmtree(leftover)
    files = sorted(pairs.glob("part-*.parquet")) if pairs.is_dir() else [pairs]
    outside = _outside_digest(options, removals, blocklists)
    size = options.samples_per_shard

    finished: dict[int, StageCounts] = {}
    digests = [_digest(outside, rows) for rows in _shards(files, size)]
    for shard, digest in enumerate(digests):
        done = _finished(out, shard, digest)
        if done is None:
            _unpublish(out, shard)
        else:
            finished[shard] = done
    for path in out.glob(f"[0-9]*{_STATS}"):
        shard = int(path.name.removesuffix(_STATS))
        if shard >= len(digests):
            _unpublish(out, shard)

    rows = sum(pq.read_metadata(file).num_rows for file in files)
    resumed = sum(counts.n_in for counts in finished.values())
    if len(finished) < len(digests):
        maker = ImageMaker(options, removals, blocklists)
        progress = Progress("image_shards", "images", rows, log, resumed=resumed)
        todo = (
            (shard, table)
            for shard, table in enumerate(_shards(files, size))
            if shard not in finished
        )
        work = _Work(out, options, digests, maker, progress, log)

        def listed(url: str) -> str | None:
            if removals.matches_url(url):
                return "removed"
            return "blocked" if blocklists.matches_url(url) else None

        fetcher = Fetcher(options, resolve=resolve, listed=listed)
        finished |= asyncio.run(work.run(todo, fetcher))
    return total("images", [finished[shard] for shard in sorted(finished)])


@dataclass
class _Work:
    out: Path
    options: DownloadOptions
    digests: Sequence[str]
    maker: ImageMaker
    progress: Progress
    log: Log

    async def run(
        self, todo: Iterator[tuple[int, pa.Table]], fetcher: Fetcher
    ) -> dict[int, StageCounts]:
        made = {}
        with ThreadPoolExecutor(self.options.resize_processes, "resize") as pool:
            async with fetcher:
                for shard, table in todo:
                    started = time.time()
                    urls = table["url"].to_pylist()
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(self._row(fetcher, pool, url)) for url in urls]
                    outcomes = [task.result() for task in tasks]
                    made[shard] = self._publish(shard, table, outcomes, started)
        return made

    async def _row(self, fetcher: Fetcher, pool: ThreadPoolExecutor, url: str) -> Outcome:
        try:
            async with fetcher.fetching(url) as fetched:
                loop = asyncio.get_running_loop()
                outcome = await loop.run_in_executor(pool, self._examine, fetched.body)
        except FetchRefused as refused:
            outcome = Outcome(None, FAILED_TO_DOWNLOAD, str(refused), reason=refused.reason)
        self.progress.advance()
        return outcome

    def _examine(self, body: bytes) -> Outcome:
        sums = Checksums.of(body)
        try:
            image = self.maker.make(body, sums)
        except ImageRefused as refused:
            return Outcome(
                None,
                FAILED_TO_RESIZE,
                str(refused),
                sha256=sums.sha256,
                md5=sums.md5,
                reason=refused.reason,
            )
        return Outcome(
            image.encoded,
            SUCCESS,
            None,
            image.width,
            image.height,
            image.original_width,
            image.original_height,
            image.exif,
            sums.sha256,
            sums.md5,
        )

    def _publish(
        self, shard: int, table: pa.Table, outcomes: Sequence[Outcome], started: float
    ) -> StageCounts:
        name = _name(shard)
        size = self.options.samples_per_shard
        schema, pairs = _pair_columns(table)
        with tempfile.TemporaryDirectory(dir=self.out, prefix=_MAKING) as folder:
            writer = img2dataset_parts.open_writer(Path(folder), shard, schema, self.options)
            for row, (pair, outcome) in enumerate(zip(pairs, outcomes, strict=True)):
                key = img2dataset_parts.key_of(shard, row, size)
                columns = {column: getattr(outcome, column) for column in _OUTCOME_COLUMNS}
                writer.write(outcome.encoded, key, pair["caption"], {**pair, "key": key, **columns})
            writer.close()
            for suffix in (".tar", ".parquet"):
                fsync_file(Path(folder) / f"{name}{suffix}")
                (Path(folder) / f"{name}{suffix}").replace(self.out / f"{name}{suffix}")
            fsync_directory(self.out)
        counts = _count(table["url"].to_pylist(), outcomes)
        self._warn_if_no_network(name, counts)
        statuses = Counter(outcome.status for outcome in outcomes)
        ended = time.time()
        stats = {
            "count": len(outcomes),
            "successes": statuses[SUCCESS],
            "failed_to_download": statuses[FAILED_TO_DOWNLOAD],
            "failed_to_resize": statuses[FAILED_TO_RESIZE],
            "duration": ended - started,
            "start_time": started,
            "end_time": ended,
            "status_dict": dict(Counter(outcome.reason or SUCCESS for outcome in outcomes)),
            "exif_unreadable": sum(
                outcome.status == SUCCESS and outcome.exif is None for outcome in outcomes
            ),
            "input_digest": self.digests[shard],
            "counts": counts.to_json(),
        }
        write_json(self.out / f"{name}{_STATS}", stats)
        return counts

    def _warn_if_no_network(self, name: str, counts: StageCounts) -> None:
        if counts.n_in and not counts.kept and set(counts.rejects) <= NETWORK:
            why = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.rejects.items()))
            self.log(
                f"WARNING: shard {name}: all {counts.n_in} downloads failed for network reasons "
                f"({why}): is this machine's network up?"
            )


def _count(urls: Sequence[str], outcomes: Sequence[Outcome]) -> StageCounts:
    counts = StageCounts("images")
    for url, outcome in zip(urls, outcomes, strict=True):
        if outcome.reason is None:
            counts.keep()
        else:
            counts.reject(outcome.reason, url)
    return counts


def _name(shard: int) -> str:
    return f"{shard:0{img2dataset_parts.SHARD_DIGITS}d}"


def _shards(files: Sequence[Path], size: int) -> Iterator[pa.Table]:
    """The rows of all files in order, ``size`` at a time, the last perhaps fewer."""
    waiting: list[pa.RecordBatch] = []
    n = 0
    for file in files:
        # Not `read_table`: it would take the lake's hive folders for columns.
        parquet = pq.ParquetFile(file)
        missing = {"url", "text"} - set(parquet.schema_arrow.names)
        if missing:
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}")
        for batch in parquet.iter_batches(batch_size=size):
            while n + len(batch) >= size:
                waiting.append(batch[: size - n])
                yield pa.Table.from_batches(waiting)
                batch, waiting, n = batch[size - n :], [], 0
            if len(batch):
                waiting.append(batch)
                n += len(batch)
    if waiting:
        yield pa.Table.from_batches(waiting)


def _pair_columns(table: pa.Table) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """The shard parquet's schema, and the rows' first columns.

    ``url`` and ``caption`` come first, as img2dataset's; bytes become hexadecimal, because each
    row is also a JSON file of the tar.
    """
    carried = [field for field in table.schema if field.name not in ("url", "text")]
    as_text = {f.name for f in carried if pa.types.is_binary(f.type) or _is_fixed(f.type)}
    schema = pa.schema(
        [
            ("url", pa.string()),
            ("caption", pa.string()),
            *(pa.field(f.name, pa.string() if f.name in as_text else f.type) for f in carried),
            *OUTCOME_SCHEMA,
        ]
    )
    rows = []
    for row in table.to_pylist():
        pair = {"url": row["url"], "caption": row["text"]}
        for field in carried:
            value = row[field.name]
            if field.name in as_text and value is not None:
                value = value.hex()
            pair[field.name] = value
        rows.append(pair)
    return schema, rows


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_binary(kind))


def _outside_digest(options: DownloadOptions, removals: Entries, blocklists: Entries) -> str:
    """Of all that decides a row's outcome beside the row and the web."""
    value = {
        "options": options.model_dump(
            mode="json", include=set(DownloadOptions.model_fields) - set(options.NOT_IN_VERSION)
        ),
        "lists": [removals.digest, blocklists.digest],
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest(outside: str, rows: pa.Table) -> str:
    text = json.dumps([outside, rows.to_pylist()], default=bytes.hex)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(out: Path, shard: int, digest: str) -> StageCounts | None:
    """The counts of a shard that is done with these rows."""
    name = _name(shard)
    stats = out / f"{name}{_STATS}"
    if not all(path.exists() for path in (stats, out / f"{name}.tar", out / f"{name}.parquet")):
        return None
    value = json.loads(stats.read_text(encoding="utf-8"))
    if value.get("input_digest") != digest:
        return None
    return StageCounts.from_json(value["counts"])


def _unpublish(out: Path, shard: int) -> None:
    """Take a shard away, what says that it is done first."""
    for suffix in (_STATS, ".parquet", ".tar"):
        (out / f"{_name(shard)}{suffix}").unlink(missing_ok=True)
