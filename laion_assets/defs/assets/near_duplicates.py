"""Each image's cluster: images that are copies of one picture, in this segment and all others."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import dagster as dg

from laion_assets import schemas
from laion_assets.clip.embed import EmbeddedWith
from laion_assets.dedup.claims import claiming_keys
from laion_assets.dedup.ledger import unsettled
from laion_assets.defs import checks, pools
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import numbers_table, table_preview
from laion_assets.defs.publishing import (
    InputsChangedError,
    earlier_damage,
    key_of,
    publishing,
    whole_input,
)
from laion_assets.defs.retries import retrying_transient
from laion_assets.files import ReadAt
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.layout import (
    CLUSTER_LEDGER,
    EMBEDDINGS,
    IMAGE_SHARDS,
    NEAR_DUPLICATES,
    SegmentKey,
)
from laion_assets.near_duplicates.pictures import cluster_sheet
from laion_assets.near_duplicates.segment import claims_held, write_segment
from laion_assets.near_duplicates.signatures import (
    SIGNATURES,
    Earlier,
    rows_of,
    signatures_of,
)
from laion_assets.settings import Settings
from laion_assets.tables import parts_of
from resources.lake import LakeResource
from resources.rules import NearDuplicatesResource

ASSET = Asset(
    NEAR_DUPLICATES,
    group="subset",
    revision=4,
    checks=("schema_exact", "rows_aligned"),
    pool=pools.CLUSTERS,
)

_UPSTREAM = (IMAGE_SHARDS, EMBEDDINGS)


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, segments, versioned=[settings.near_duplicates]),
        deps=_UPSTREAM,
        kinds={"numpy", "parquet"},
        description=__doc__,
    )
    @retrying_transient
    def near_duplicates(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        near_duplicate_rules: NearDuplicatesResource,
    ) -> dg.MaterializeResult:
        key, store, options = key_of(context), lake.open(), near_duplicate_rules.options()
        embedded = EmbeddedWith.recorded(store.manifest(EMBEDDINGS, key).metadata, EMBEDDINGS)
        before = _versions(store, key)
        # What takes long is done before the ledger is leased.
        shards, embeddings = (whole_input(store, asset, key) for asset in _UPSTREAM)
        rows = rows_of(embeddings)
        folder, damaged = _earlier(store, key)
        earlier = _of_same_code(context, store, key, folder)
        images = signatures_of(rows, shards, embeddings, embedded.model_version, earlier)
        with (
            store.lease(CLUSTER_LEDGER, NEAR_DUPLICATES, unsettled) as lease,
            claiming_keys(lease.folder, lease.partitions, key, claims_held) as claims,
            publishing(context, store, upstream=_UPSTREAM, options=options) as made,
        ):
            if _versions(store, key) != before:
                raise InputsChangedError(f"what {NEAR_DUPLICATES} was read from was replaced")
            made.damaged |= damaged
            found = write_segment(rows, images, claims, _opener(store), made.out, options)
            lease.save()
            made.staging.metadata = found.metadata()
            made.require(
                checks.schema_exact(made.rows, schemas.NEAR_DUPLICATES, parts_of(len(rows))),
                checks.rows_aligned(made.rows, embeddings),
            )
            sheet = made.picture(
                "clusters", cluster_sheet(made.out, embeddings, shards), "clusters of copies"
            )
        return made.result(
            clusters=sheet,
            images=numbers_table(found.table()),
            preview=table_preview(made.rows, ["SAMPLE_ID", "cluster", "likeness", "first"]),
        )

    return near_duplicates


def _versions(store: Lake, key: SegmentKey) -> list[str]:
    return [store.manifest(asset, key).data_version for asset in _UPSTREAM]


def _earlier(store: Lake, key: SegmentKey) -> tuple[Path | None, dict[str, str]]:
    """The earlier signatures' folder, if they can be taken over, and what is damaged of it."""
    with suppress(NotPublishedError):
        damaged = earlier_damage(store, NEAR_DUPLICATES, key, SIGNATURES)
        return None if damaged else store.folder(NEAR_DUPLICATES, key, SIGNATURES), damaged
    return None, {}


def _of_same_code(
    context: dg.AssetExecutionContext, store: Lake, key: SegmentKey, folder: Path | None
) -> Earlier | None:
    """What may be taken over of an earlier partition, if this revision of the code has made it."""
    if folder is None:
        return None
    version = store.manifest(NEAR_DUPLICATES, key).code_version
    if version.partition("-")[0] != str(ASSET.revision):
        return None
    now = context.assets_def.code_versions_by_key[context.asset_key]
    return Earlier(folder, same_rules=version == now)


# Each image is compared with a few rows of thousands of segments' files: to verify these files
# would be to read them all.
def _opener(store: Lake) -> Callable[[SegmentKey], ReadAt]:
    opened = store.opener()
    return lambda key: opened(NEAR_DUPLICATES, key, SIGNATURES)
