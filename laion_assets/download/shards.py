"""A shard's files: written whole, known to be done, put aside for a new version, taken over.

A shard is its tar, its parquet, its part of the ledger, then its ``_stats.json``, each published
whole: it is done when the last is there and holds the digest of its rows and of what decides
their outcome.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.download import img2dataset_parts
from laion_assets.download.options import DownloadOptions
from laion_assets.download.outcomes import (
    OUTCOME_COLUMNS,
    History,
    Outcome,
    ledger_table,
)
from laion_assets.files import atomic_path, fsync_directory, fsync_file, write_json
from laion_assets.schemas import OUTCOME

STATS: Final = "_stats.json"
LEDGER: Final = "_ledger"
MAKING: Final = ".making-"


@dataclass(frozen=True)
class Place:
    """Where an encoded image lies in the file that a shard is gathered in."""

    start: int
    size: int


def name_of(shard: int) -> str:
    return f"{shard:0{img2dataset_parts.SHARD_DIGITS}d}"


def files_of(folder: Path, shard: int) -> tuple[Path, Path, Path, Path]:
    """Tar, parquet, ledger and, what makes it done, the statistics."""
    name = name_of(shard)
    return (
        folder / f"{name}.tar",
        folder / f"{name}.parquet",
        folder / LEDGER / f"{name}.parquet",
        folder / f"{name}{STATS}",
    )


def shards_in(folder: Path) -> list[int]:
    """The shards that have been finished there, sorted."""
    return sorted(int(path.name.removesuffix(STATS)) for path in folder.glob(f"[0-9]*{STATS}"))


def begun_in(folder: Path) -> list[int]:
    """The shards of which any file is there, sorted."""
    names = (path.name[: img2dataset_parts.SHARD_DIGITS] for path in folder.glob("[0-9]*"))
    return sorted({int(name) for name in names if name.isdigit()})


def read_stats(folder: Path, shard: int) -> dict[str, Any] | None:
    """The statistics of a shard of which all files are there, the tar in its full length."""
    files = files_of(folder, shard)
    if not all(path.exists() for path in files):
        return None
    stats: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))
    whole = stats.get("tar_bytes") == files[0].stat().st_size
    return stats if whole else None


def mark_not_done(folder: Path, shard: int) -> None:
    """Have the next run make it again; its outcomes stay known."""
    path = files_of(folder, shard)[-1]
    stats = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**stats, "input_digest": None})


def put_aside(folder: Path, shard: int, to: Path) -> None:
    """Move a finished shard into ``to``; one that was never finished is deleted.

    The statistics go last: a call that was killed is gone on with by the next.
    """
    files = files_of(folder, shard)
    if not files[-1].exists():
        for path in reversed(files):  # the tar, which shows that there is something, last
            path.unlink(missing_ok=True)
        return
    (to / LEDGER).mkdir(parents=True, exist_ok=True)
    for path, target in zip(files, files_of(to, shard), strict=True):
        if path.exists():
            # A rename to another name of the same file does nothing, by POSIX.
            target.unlink(missing_ok=True)
            path.replace(target)


def take_over(folder: Path, shard: int, out: Path, stats: Mapping[str, Any]) -> None:
    """Have the same shard in ``out``, without a copy where the file system has hard links."""
    (out / LEDGER).mkdir(exist_ok=True)
    *content, _ = zip(files_of(folder, shard), files_of(out, shard), strict=True)
    for path, target in content:
        with atomic_path(target) as beside:
            try:
                os.link(path, beside)
            except OSError:  # the file system has none
                shutil.copyfile(path, beside)
    write_json(files_of(out, shard)[-1], stats)


def write_shard(
    out: Path,
    shard: int,
    table: pa.Table,
    outcomes: Sequence[Outcome],
    histories: Sequence[History],
    gathered: Path,
    places: Sequence[Place | None],
    stats: Mapping[str, Any],
    options: DownloadOptions,
) -> None:
    """Publish a shard of the rows ``table``; ``gathered`` holds the encoded images."""
    schema, pairs = _pair_columns(table)
    keys = [
        img2dataset_parts.key_of(shard, row, options.samples_per_shard) for row in range(len(pairs))
    ]
    final = files_of(out, shard)
    with tempfile.TemporaryDirectory(dir=out, prefix=MAKING) as folder, gathered.open("rb") as all_:
        made = files_of(Path(folder), shard)
        writer = img2dataset_parts.open_writer(Path(folder), shard, schema, options)
        for key, pair, outcome, place in zip(keys, pairs, outcomes, places, strict=True):
            encoded = None
            if place is not None:
                all_.seek(place.start)
                encoded = all_.read(place.size)
            columns = {column: getattr(outcome, column) for column in OUTCOME_COLUMNS}
            writer.write(encoded, key, pair["caption"], {**pair, "key": key, **columns})
        writer.close()
        made[2].parent.mkdir()
        urls = [pair["url"] for pair in pairs]
        pq.write_table(ledger_table(keys, urls, list(histories)), made[2], compression="zstd")
        tar_bytes = made[0].stat().st_size
        final[2].parent.mkdir(exist_ok=True)
        final[3].unlink(missing_ok=True)  # until the new one is there, the shard is not done
        for path, target in zip(made[:3], final[:3], strict=True):
            fsync_file(path)
            path.replace(target)
        fsync_directory(final[2].parent)
        fsync_directory(out)
    write_json(final[3], {**stats, "tar_bytes": tar_bytes})


def _pair_columns(table: pa.Table) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """The shard parquet's schema, and the rows' first columns.

    ``url`` and ``caption`` come first, as img2dataset's; bytes become hexadecimal, and times and
    decimals text, because each row is also a JSON file of the tar.
    """
    carried = [field for field in table.schema if field.name not in ("url", "text")]
    as_text = {f.name for f in carried if _is_bytes(f.type) or not _is_json(f.type)}
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


def _is_json(kind: pa.DataType) -> bool:
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
