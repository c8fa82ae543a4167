"""What every asset of the graph does around its stage: inputs, staging, publishing, metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from laion_assets.lake import Lake, Staging
from laion_assets.metadata import manifest_metadata
from laion_assets.partitions import segment_key
from laion_assets.segments import SegmentKey


def key_of(context: dg.AssetExecutionContext) -> SegmentKey:
    return segment_key(context.partition_key)


@contextmanager
def publishing(
    context: dg.AssetExecutionContext,
    lake: Lake,
    made_of: Mapping[str, str],
    key: SegmentKey | None = None,
) -> Iterator[Staging]:
    """Stage and publish this asset's partition; ``made_of`` maps inputs to data versions."""
    name = context.asset_key.path[-1]
    version = context.assets_def.code_versions_by_key[context.asset_key] or ""
    with lake.publish(
        name,
        key,
        inputs=made_of,
        code_version=version,
        run_id=context.run_id,
        log=context.log.info,
    ) as staging:
        yield staging


def data_versions(lake: Lake, assets: Iterable[str], key: SegmentKey | None) -> dict[str, str]:
    """The data versions of the partitions that this one is made of."""
    return {asset: lake.manifest(asset, key).data_version for asset in assets}


def materialized(
    context: dg.AssetExecutionContext,
    lake: Lake,
    staging: Staging,
    key: SegmentKey | None = None,
    *,
    checks: Sequence[dg.AssetCheckResult] = (),
    extra: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult:
    """The result of a published partition, its metadata for people included."""
    manifest = staging.published
    folder = lake.folder(manifest.asset, key)
    for counts in manifest.counts:
        rejects = ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.rejects.items()))
        context.log.info(
            f"{counts.stage}: {counts.n_in:,} in, {counts.kept:,} kept"
            + (f"; {rejects}" if rejects else "")
        )
    return dg.MaterializeResult(
        asset_key=context.asset_key,
        metadata=manifest_metadata(manifest, folder)
        | {"resumed": staging.resumed}
        | dict(extra or {}),
        data_version=dg.DataVersion(manifest.data_version),
        check_results=list(checks),
    )
