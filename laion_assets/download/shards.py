"""A shard's files: write them whole, tell whether they are done, put them aside, take them over.

A shard is its tar, its parquet, its part of the ledger, then its ``_stats.json``, each published
whole. It is done when the last is present and holds the digest of its rows and of what decides
their outcomes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.download import img2dataset_parts
from laion_assets.download.digests import rows_digest, stored_digest
from laion_assets.download.options import DownloadOptions
from laion_assets.download.outcomes import (
    OUTCOME_COLUMNS,
    History,
    Outcome,
    ledger_table,
)
from laion_assets.download.shard_files import (
    LEDGER,
    NUMBER,
    files_of,
    has_rows,
    name_of,
    shards_in,
)
from laion_assets.download.shard_stats import ShardStats
from laion_assets.download.tars import problem_of
from laion_assets.files import (
    atomic_path,
    fsync_directory,
    fsync_file,
    identity,
    link_or_copy,
    sha256_file,
    write_json,
)
from laion_assets.schemas import OUTCOME
from laion_assets.tables import write_table

MAKING: Final = ".making-"
"""Prefix of temporary folders."""


@dataclass(frozen=True)
class Place:
    """Position, in bytes, of an encoded image in a file that gathers a shard's images.

    ``file``: the file's name.
    """

    file: str
    start: int
    size: int


def gathered_in(scratch: Path, shard: int, process: int | str) -> Path:
    """The file in which a process gathers a shard's images."""
    return scratch / f"{name_of(shard)}-{process}"


def read_stats(folder: Path, shard: int) -> ShardStats | None:
    """The statistics of a shard; None if a file is missing or the tar is cut."""
    stats, tar = recorded_stats(folder, shard), files_of(folder, shard)[0]
    whole = stats is not None and tar.exists() and stats.tar_bytes == tar.stat().st_size
    return stats if whole else None


def recorded_stats(folder: Path, shard: int) -> ShardStats | None:
    """The statistics of a shard, whatever became of its tar; None if another file is missing."""
    tar, _, _, path = files_of(folder, shard)
    return _load(path) if path.exists() and has_rows(tar) else None


def recorded_next_rows(folder: Path) -> dict[int, int]:
    """Shard -> the number of its next row, as far as statistics in the folder say so.

    Raises ``ValueError`` or ``KeyError`` for damaged ones.
    """
    return {shard: _load(files_of(folder, shard)[-1]).next_row for shard in shards_in(folder)}


def _load(path: Path) -> ShardStats:
    return ShardStats.from_json(json.loads(path.read_text(encoding="utf-8")))


def mark_not_done(folder: Path, shard: int) -> None:
    """Let the next run make the shard again; its outcomes stay known."""
    path = files_of(folder, shard)[-1]
    write_json(path, replace(_load(path), input_digest=None).to_json())


def put_aside(folder: Path, shard: int, to: Path) -> None:
    """Move a finished shard into ``to``, or delete one that was never finished.

    The statistics go last, so that the next call resumes a killed one.
    """
    files = files_of(folder, shard)
    if not files[-1].exists():
        for path in reversed(files):  # the tar last: it shows that something is left
            path.unlink(missing_ok=True)
        return
    (to / LEDGER).mkdir(parents=True, exist_ok=True)
    for path, target in zip(files, files_of(to, shard), strict=True):
        if path.exists():
            # By POSIX, a rename to another name of the same file does nothing.
            target.unlink(missing_ok=True)
            path.replace(target)


def take_over(
    tar: Path, rows: pa.Table, ledger: pa.Table, out: Path, stats: ShardStats
) -> ShardStats:
    """Write a shard's rows into ``out``, and link its tar, or copy it if the file system does not
    have hard links.

    Return its statistics there, in which all rows are reused.
    """
    shard = int(tar.stem)
    with atomic_path(files_of(out, shard)[0]) as beside:
        link_or_copy(tar, beside)
    taken = replace(stats, reused=stats.count, asked_for=0, changed=0, bytes=0)
    publish_shard(out, shard, rows, ledger, taken)
    return taken


def publish_shard(
    out: Path, shard: int, rows: pa.Table, ledger: pa.Table, stats: ShardStats
) -> None:
    """Publish a shard's rows and statistics, which are the last to appear, behind its tar."""
    write_rows(out, shard, rows, ledger)
    write_json(files_of(out, shard)[-1], stats.to_json())


def write_rows(out: Path, shard: int, rows: pa.Table, ledger: pa.Table) -> None:
    """Publish a shard's part of the ledger and its parquet, which is the last to appear."""
    _, parquet, of_ledger, _ = files_of(out, shard)
    write_table(of_ledger, ledger)
    write_table(parquet, rows.drop([NUMBER]) if NUMBER in rows.column_names else rows)


def write_shard(
    out: Path,
    shard: int,
    table: pa.Table,
    rows: Sequence[int],
    outcomes: Sequence[Outcome],
    histories: Sequence[History],
    scratch: Path,
    places: Sequence[Place | None],
    stats: ShardStats,
    options: DownloadOptions,
) -> None:
    """Publish a shard of the pairs ``table``, whose numbers in it are ``rows``.

    ``outcomes``, ``histories`` and ``places`` have one item for each row. ``scratch`` is the folder
    of the files that hold the encoded images. The digest of the rows is added to ``stats`` here,
    unless its ``input_digest`` is None.
    """
    if stats.input_digest is not None:
        stats = replace(stats, input_digest=rows_digest(table, rows, stats.options_digest))
    schema, pairs = pair_columns(table)
    keys = [img2dataset_parts.key_of(shard, row, options.samples_per_shard) for row in rows]
    final = files_of(out, shard)
    with tempfile.TemporaryDirectory(dir=out, prefix=MAKING) as folder, ExitStack() as opened:
        files = {
            name: opened.enter_context((scratch / name).open("rb"))
            for name in {place.file for place in places if place is not None}
        }
        made = files_of(Path(folder), shard)
        writer = img2dataset_parts.open_writer(Path(folder), shard, schema, options)
        for key, pair, outcome, place in zip(keys, pairs, outcomes, places, strict=True):
            encoded = None
            if place is not None:
                files[place.file].seek(place.start)
                encoded = files[place.file].read(place.size)
            columns = {column: getattr(outcome, column) for column in OUTCOME_COLUMNS}
            writer.write(encoded, {**pair, "key": key, **columns})
        writer.close()
        made[2].parent.mkdir()
        urls = [pair["url"] for pair in pairs]
        pq.write_table(ledger_table(keys, urls, list(histories)), made[2], compression="zstd")
        stored = {
            key: pair["caption"]
            for key, pair, place in zip(keys, pairs, places, strict=True)
            if place is not None
        }
        stats = _read_back(made[0], stored, stats)
        final[2].parent.mkdir(exist_ok=True)
        final[3].unlink(missing_ok=True)  # without it, the shard is not done
        for path, target in zip(made[:3], final[:3], strict=True):
            fsync_file(path)
            path.replace(target)
        fsync_directory(final[2].parent)
        fsync_directory(out)
    write_json(final[3], stats.to_json())


def _read_back(tar: Path, captions: Mapping[str, str | None], stats: ShardStats) -> ShardStats:
    """Statistics that record the tar's size, and its digest if it holds these samples whole."""
    stats = replace(stats, tar_bytes=tar.stat().st_size)
    if problem_of(tar, captions) is not None:
        return stats  # whoever checks the partition reads it again, and says what is wrong
    return replace(
        stats,
        tar_sha256=sha256_file(tar),
        stored_digest=stored_digest(captions),
        tar_identity=identity(tar),
    )


def was_whole(tar: Path, captions: Mapping[str, str | None]) -> bool:
    """Whether the writer of a tar has found exactly these samples whole in it, and it is still that
    file. ``captions`` as :func:`.tars.problem_of` takes them. Raises ``FileNotFoundError``."""
    stats = _read_back_by(tar)
    return stats is not None and stats.stored_digest == stored_digest(captions)


def has_rotted(tar: Path, stats: ShardStats) -> bool:
    """Whether a tar no longer has the bytes that its writer has read back, if it has. Reads all."""
    return bool(stats.tar_sha256) and sha256_file(tar) != stats.tar_sha256


def _read_back_by(tar: Path) -> ShardStats | None:
    """A tar's statistics, if its writer has found it whole, and it is still that file."""
    path = files_of(tar.parent, int(tar.stem))[-1]
    stats = _load(path) if path.exists() else None
    same = stats is not None and stats.tar_identity == identity(tar)
    return stats if same else None


def digests_read_back(folder: Path) -> dict[Path, str]:
    """The SHA-256 of those tars of a folder of shards that their writers have found whole."""
    tars = [files_of(folder, shard)[0] for shard in shards_in(folder)]
    found = {tar: _read_back_by(tar) for tar in tars if tar.exists()}
    return {tar: stats.tar_sha256 for tar, stats in found.items() if stats is not None}


def pair_columns(table: pa.Table) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """The shard parquet's schema, and the columns of its rows that come from the pairs.

    ``url`` and ``caption`` come first, as in img2dataset's files. Bytes become hexadecimal, and
    times and decimals text, as in the tar's JSON; nested columns keep their types.
    """
    carried = [field for field in table.schema if field.name not in ("url", "text")]
    as_text = {f.name for f in carried if _is_bytes(f.type) or not _keeps_type(f.type)}
    schema = pa.schema(
        [
            ("url", pa.string()),
            ("caption", pa.string()),
            *(pa.field(f.name, pa.string() if f.name in as_text else f.type) for f in carried),
            *OUTCOME,
        ]
    )
    rows = []
    for row in table.to_pylist():
        pair = {"url": row["url"], "caption": row["text"]}
        for field in carried:
            value = row[field.name]
            if field.name in as_text and value is not None:
                value = value.hex() if isinstance(value, bytes) else str(value)
            pair[field.name] = value
        rows.append(pair)
    return schema, rows


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _keeps_type(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_null(kind)
        or types.is_nested(kind)
    )
