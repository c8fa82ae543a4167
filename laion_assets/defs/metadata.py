"""What a person sees of a materialization: counts, rejects, rates, a preview."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from laion_assets.download.segment import Downloaded
from laion_assets.funnel import REASONS, StageCounts
from laion_assets.lake import Manifest

PREVIEW_ROWS = 8
PREVIEW_CHARS = 80


def manifest_metadata(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """The metadata that every published partition records."""
    seconds = max(manifest.seconds, 1e-3)
    metadata: dict[str, Any] = {
        "folder": dg.MetadataValue.path(str(folder)),
        "bytes": manifest.bytes,
        "files": len(manifest.files),
        "seconds": manifest.seconds,
        "code_version": manifest.code_version,
        "fingerprint": manifest.fingerprint,
    }
    for counts in manifest.counts:
        metadata |= _counts_metadata(counts, seconds)
    for name, value in manifest.metadata.items():
        metadata[name] = value
    return metadata


def _counts_metadata(counts: StageCounts, seconds: float) -> dict[str, Any]:
    stage = counts.stage
    metadata: dict[str, Any] = {
        f"{stage}/in": counts.n_in,
        f"{stage}/kept": counts.kept,
        f"{stage}/in_per_second": round(counts.n_in / seconds, 1),
    }
    if counts.n_in:
        metadata[f"{stage}/kept_share"] = round(counts.kept / counts.n_in, 4)
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
        metadata[f"{stage}/rejects"] = dg.MetadataValue.table(
            rows, schema=_schema({"n": "int"}, ["reason", "n", "what it means", "examples"])
        )
    return metadata


def download_metadata(downloaded: Downloaded) -> dict[str, Any]:
    """What a person asks of a download beside its counts."""
    seconds = max(downloaded.seconds, 1e-3)
    hosts = [
        dg.TableRecord(
            {
                "host": host,
                "failed": sum(reasons.values()),
                "reasons": ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items())),
            }
        )
        for host, reasons in downloaded.hosts.items()
    ]
    return {
        "images_asked_for": downloaded.asked_for,
        "images_reused": downloaded.reused,
        "images_changed": downloaded.changed,
        "bytes_received": downloaded.bytes,
        "images_per_second": round(downloaded.fetched_now / seconds, 1),
        "bytes_per_second": round(downloaded.bytes_now / seconds),
        "failing_hosts": dg.MetadataValue.table(
            hosts, schema=_schema({"failed": "int"}, ["host", "failed", "reasons"])
        ),
        "shards_without_network": ", ".join(downloaded.without_network) or "none",
    }


def _schema(types: Mapping[str, str], columns: Sequence[str]) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name, types.get(name, "string")) for name in columns])


def numbers_table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """A table of rows with the same columns; whole numbers are shown as such."""
    types = {name: "int" for row in rows for name, value in row.items() if isinstance(value, int)}
    records = [dg.TableRecord(dict(row)) for row in rows]
    columns = list(rows[0]) if rows else ["none"]
    return dg.MetadataValue.table(records, schema=_schema(types, columns))


def table_preview(
    folder: Path, columns: Sequence[str], pattern: str = "*.parquet", rows: int = PREVIEW_ROWS
) -> dg.TableMetadataValue:
    """The first rows of a folder's parquet parts, cut to what fits on a page."""
    import pyarrow.parquet as pq

    records: list[dg.TableRecord] = []
    for part in sorted(folder.glob(pattern)):
        if len(records) >= rows:
            break
        batches = pq.ParquetFile(part).iter_batches(rows, columns=list(columns))
        for batch in batches:
            for row in batch.to_pylist()[: rows - len(records)]:
                records.append(dg.TableRecord({name: _short(row[name]) for name in columns}))
            break
    return dg.MetadataValue.table(records, schema=_schema({}, columns))


def _short(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if len(text) <= PREVIEW_CHARS else text[: PREVIEW_CHARS - 1] + "…"


def picture(image: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A PNG or JPEG shown in place."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    encoded = base64.b64encode(image).decode("ascii")
    return dg.MetadataValue.md(f"![{alt}](data:image/{kind};base64,{encoded})")
