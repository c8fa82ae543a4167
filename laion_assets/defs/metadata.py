"""What a person sees of a materialization: counts, rejects, rates, a preview."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pyarrow.parquet as pq

from laion_assets.funnel import REASONS, StageCounts
from laion_assets.lake import Manifest
from laion_assets.layout import SegmentKey, Table, partition_of, place_of
from laion_assets.tables import rows_in

IN, KEPT, IN_PER_SECOND, REJECTS = "in", "kept", "in_per_second", "rejects"
"""What is recorded of a stage, under the name that :func:`stage_name` gives it."""

THUMBNAIL_BYTES: Final = 5_000
"""About 7 kB in Base64: a person sees what the picture is of, and opens the whole one for more."""
_QUALITY: Final = 50
_EFFORT: Final = 4
"""The slowest, 6, takes twice the time, for a picture hardly larger."""
_SHRINK: Final = 0.9
_SMALLEST_SIDE: Final = 32
_MOST_PIXELS: Final = 40
"""Pixels in a byte of the plainest plots."""

PREVIEW_ROWS = 5
PREVIEW_CHARS = 80


def manifest_metadata(manifest: Manifest, folder: Path, uri: str) -> dict[str, Any]:
    """The metadata that every published partition records. ``uri``: its address in the lake."""
    seconds = max(manifest.seconds, 1e-3)
    metadata: dict[str, Any] = {
        "dagster/uri": uri,
        "folder": dg.MetadataValue.path(str(folder)),
        "bytes": manifest.bytes,
        "size": readable_bytes(manifest.bytes),
        "files": len(manifest.files),
        "seconds": manifest.seconds,
        "took": readable_seconds(manifest.seconds),
        "code_version": manifest.code_version,
        "fingerprint": manifest.fingerprint,
    }
    for counts in manifest.counts:
        metadata |= _counts_metadata(counts, seconds)
    return {**metadata, **manifest.metadata}


def stage_name(stage: str, what: str) -> str:
    """Return the metadata's name of a stage's number, such as ``images/kept``."""
    return f"{stage}/{what}"


def split_stage_name(name: str) -> tuple[str, str]:
    """Return stage and number of what :func:`stage_name` returned; no stage for other names."""
    stage, _, what = name.rpartition("/")
    return stage, what


def readable_bytes(n: float) -> str:
    """A size with its unit, as in ``12.3 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def readable_seconds(seconds: float) -> str:
    """A duration with its units, as in ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def column_schema(table: Table) -> dg.TableSchema:
    """The table's columns as Dagster's catalog shows them, with what each means."""
    return dg.TableSchema(
        [
            dg.TableColumn(name, type=kind, description=meaning)
            for name, kind, meaning in table.columns()
        ]
    )


def uri_of(lake_root: str, asset: str, key: SegmentKey | None = None) -> str:
    """Address of an asset, or of its partition for a segment, in the lake."""
    root = lake_root if "://" in lake_root else Path(lake_root).absolute().as_uri()
    return f"{root}/{place_of(asset, key)}"


def definition_metadata(asset: str, lake_root: str) -> dict[str, Any]:
    """What the catalog page shows of an asset before anything is materialized: its columns, if it
    has rows, and its address in the lake."""
    metadata: dict[str, Any] = {"dagster/uri": uri_of(lake_root, asset)}
    if tables := partition_of(asset).tables:
        metadata["dagster/column_schema"] = column_schema(tables[0])
    return metadata


def table_metadata(asset: str, folder: Path) -> dict[str, Any]:
    """Dagster's standard metadata of a published partition with rows: how many; empty for an asset
    without. The columns are the definition's, not repeated with every partition."""
    tables = partition_of(asset).tables
    if not tables:
        return {}
    return {"dagster/partition_row_count": rows_in(*tables[0].paths(folder))}


def _counts_metadata(counts: StageCounts, seconds: float) -> dict[str, Any]:
    stage = counts.stage
    metadata: dict[str, Any] = {
        stage_name(stage, IN): counts.n_in,
        stage_name(stage, KEPT): counts.kept,
        stage_name(stage, IN_PER_SECOND): round(counts.n_in / seconds, 1),
    }
    if counts.n_in:
        metadata[stage_name(stage, "kept_share")] = round(counts.kept / counts.n_in, 4)
    if counts.rejects:
        rows = [
            dg.TableRecord(
                {
                    "reason": reason,
                    "n": n,
                    "what it means": REASONS[stage][reason],
                    "examples": " · ".join(counts.examples.get(reason, [])[:2])[:300],
                }
            )
            for reason, n in sorted(counts.rejects.items(), key=lambda item: -item[1])
        ]
        metadata[stage_name(stage, REJECTS)] = dg.MetadataValue.table(
            rows, schema=schema_of({"n": "int"}, ["reason", "n", "what it means", "examples"])
        )
    return metadata


def schema_of(types: Mapping[str, str], columns: Sequence[str]) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name, types.get(name, "string")) for name in columns])


def numbers_table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """A table of rows with the same columns; whole numbers are shown as such."""
    types = {name: "int" for row in rows for name, value in row.items() if isinstance(value, int)}
    records = [dg.TableRecord(dict(row)) for row in rows]
    columns = list(rows[0]) if rows else ["none"]
    return dg.MetadataValue.table(records, schema=schema_of(types, columns))


def table_preview(
    paths: Sequence[Path], columns: Sequence[str], rows: int = PREVIEW_ROWS
) -> dg.TableMetadataValue:
    """The first rows of parquet files, cut to what fits on a page."""
    records: list[dg.TableRecord] = []
    for part in paths:
        if len(records) >= rows:
            break
        batches = pq.ParquetFile(part).iter_batches(rows, columns=list(columns))
        for batch in batches:
            for row in batch.to_pylist()[: rows - len(records)]:
                records.append(dg.TableRecord({name: _short(row[name]) for name in columns}))
            break
    return dg.MetadataValue.table(records, schema=schema_of({}, columns))


def _short(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if len(text) <= PREVIEW_CHARS else text[: PREVIEW_CHARS - 1] + "…"


def picture(image: bytes, alt: str, uri: str) -> dg.MarkdownMetadataValue:
    """A small view of a PNG or JPEG, shown in place, and the address of the whole one.

    A run's record is kept for ever and in full; pictures would be nine tenths of it.
    """
    encoded = base64.b64encode(thumbnail(image)).decode("ascii")
    return dg.MetadataValue.md(f"![{alt}](data:image/webp;base64,{encoded})\n\n`{uri}`")


def thumbnail(image: bytes, limit: int = THUMBNAIL_BYTES) -> bytes:
    """Return a WebP of a picture, not larger than it, with at most ``limit`` bytes.

    Most come close to the limit.
    """
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        whole = opened.convert("RGB")
    # To compress a picture in full first would take longer than all that follows.
    fits = math.sqrt(limit * _MOST_PIXELS / (whole.width * whole.height))
    side = round(max(whole.size) * min(1, fits))
    while True:
        small = whole.copy()
        small.thumbnail((side, side))
        encoded = io.BytesIO()
        small.save(encoded, "WEBP", quality=_QUALITY, method=_EFFORT)
        size = encoded.tell()
        # Bytes mostly grow with less than the area, so this is seldom much too small.
        side = round(side * max(0.5, min(_SHRINK, math.sqrt(limit / size))))
        if size <= limit or side < _SMALLEST_SIDE:
            return encoded.getvalue()
