"""What every asset of the graph does around its stage: inputs, staging, publishing, metadata."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel

from laion_assets.defs.code_version import code_version
from laion_assets.defs.jobs import segment_assets
from laion_assets.defs.metadata import manifest_metadata
from laion_assets.defs.partitions import segment_key
from laion_assets.lake import Lake, Staging
from laion_assets.segments import SegmentKey
from laion_assets.settings import Settings


class InputsChangedError(RuntimeError):
    """An upstream partition was replaced while this one was made of it."""


def key_of(context: dg.AssetExecutionContext) -> SegmentKey:
    return segment_key(context.partition_key)


@contextmanager
def publishing(
    context: dg.AssetExecutionContext,
    lake: Lake,
    key: SegmentKey | None = None,
    *,
    upstream: Sequence[str] = (),
    shared: Sequence[str] = (),
    made_of: Mapping[str, str] | None = None,
    options: BaseModel | None = None,
    leave_out: Collection[str] = (),
    stage_judges_parts: bool = False,
) -> Iterator[Staging]:
    """Stage and publish this asset's partition.

    ``upstream`` names the assets whose partition of the same key it is made of, ``shared`` those
    without partitions, ``made_of`` other
    inputs and their versions, ``options`` the options it is really made with: a run may override
    those that the code version speaks of; ``stage_judges_parts`` as :meth:`Lake.publish` has it.
    Raises :class:`InputsChangedError` if an upstream partition was replaced meanwhile; nothing is
    published then.
    """
    name = context.asset_key.path[-1]
    version = context.assets_def.code_versions_by_key[context.asset_key] or ""
    of = {**dict.fromkeys(upstream, key), **dict.fromkeys(shared)}
    before = {asset: lake.manifest(asset, its_key).data_version for asset, its_key in of.items()}
    inputs = {**before, **(made_of or {})}
    if options is not None:
        inputs["options"] = code_version(0, options, leave_out=leave_out)
    with lake.publish(
        name,
        key,
        inputs=inputs,
        code_version=version,
        run_id=context.run.run_id,
        stage_judges_parts=stage_judges_parts,
    ) as staging:
        yield staging
        if options is not None:
            told = options.model_dump(mode="json", exclude=set(leave_out))
            staging.metadata = {**staging.metadata, "options": told}
        for asset, data_version in before.items():
            if lake.manifest(asset, of[asset]).data_version != data_version:
                raise InputsChangedError(
                    f"{asset} was made anew while {name} was made of it: make {name} again"
                )


def fetch_tables(lake: Lake, settings: Settings) -> None:
    """Have the parquet of all segments at hand, which the catalog's views read."""
    for asset in segment_assets(settings.subsets):
        for key in lake.segments(asset):
            lake.fetch(asset, key, "*.parquet")


def made_of_the_same(lake: Lake, asset: str, key: SegmentKey, staging: Staging) -> Path | None:
    """The published partition, if it was made of the same inputs with the same code and options."""
    folder = lake.folder(asset, key)
    if not folder.exists() or lake.manifest(asset, key).fingerprint != staging.fingerprint:
        return None
    return folder


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
