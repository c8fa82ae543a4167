"""The segment's images: guarded download into webdataset shards, as img2dataset writes them."""

from functools import partial
from typing import Any

import dagster as dg

from laion_assets.defs import checks, pools
from laion_assets.defs.assets.lists import note_taken_out
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import schema_of
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.download.joined import join, take_apart
from laion_assets.download.listed_rows import resolved_in
from laion_assets.download.numbering import KeysGiven
from laion_assets.download.preview import contact_sheet
from laion_assets.download.segment import download_segment
from laion_assets.download.shard_files import LEDGER, SHARDS, shards_of
from laion_assets.download.shards import digests_read_back
from laion_assets.download.summary import Downloaded
from laion_assets.layout import IMAGE_SHARDS, LISTS, UNIQUE_PAIRS
from laion_assets.lookup.write import write_lookups
from laion_assets.removals.active import FOLDERS, note_resolved, read_lists, resolved_file
from laion_assets.settings import Settings
from resources.downloader import DownloaderResource
from resources.lake import LakeResource

ASSET = Asset(
    IMAGE_SHARDS,
    group="images",
    revision=4,
    checks=("shards_whole", "funnel_adds_up"),
    pool=pools.DOWNLOAD,
    asks_network=True,
)

ROWS = ("*.parquet", f"{LEDGER}/*")
"""Files without which sound images would be refetched, and all pairs would get other keys."""


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, segments, versioned=[settings.download]),
        deps=[UNIQUE_PAIRS, *LISTS],
        kinds={"http", "webdataset"},
        description=__doc__,
    )
    @retrying_transient
    def image_shards(
        context: dg.AssetExecutionContext, lake: LakeResource, downloader: DownloaderResource
    ) -> dg.MaterializeResult:
        store, options = lake.open(), downloader.options()
        lists = read_lists(store.current(*FOLDERS))
        with publishing(
            context, store, upstream=[UNIQUE_PAIRS], options=options, stage_judges_parts=True
        ) as made:
            made.staging.not_content = ("*_stats.json", "_ledger/*")
            before, shards = made.earlier(kept=ROWS), made.out / SHARDS
            take_apart(shards)
            downloaded = download_segment(
                made.input(UNIQUE_PAIRS),
                shards,
                options,
                removals=lists.removals,
                blocklists=lists.blocklists,
                before=shards_of(before) if before else None,
                given=KeysGiven.recorded(made.manifest(IMAGE_SHARDS).metadata) if before else None,
            )
            join(shards)
            write_lookups(IMAGE_SHARDS, made.out)
            made.staging.counts = [downloaded.counts]
            made.staging.metadata = downloaded.given.to_json()
            made.staging.digests = digests_read_back(shards)
            successes = checks.successes_in(made.rows)
            made.require(
                checks.shards_whole(made.out),
                checks.funnel_adds_up(downloaded.counts, successes, made.kept(UNIQUE_PAIRS)),
            )
            sheet = made.picture("contact_sheet", contact_sheet(made.out), "images with captions")
        resolved, taken = resolved_in(made.out, lists)
        for name, of_list in resolved.items():
            store.update(resolved_file(name), partial(note_resolved, name=name, resolved=of_list))
        note_taken_out(made, lists, taken)
        return made.result(**_shown(downloaded), contact_sheet=sheet)

    return image_shards


def _shown(downloaded: Downloaded) -> dict[str, Any]:
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
            hosts, schema=schema_of({"failed": "int"}, ["host", "failed", "reasons"])
        ),
        "shards_without_network": ", ".join(downloaded.without_network) or "none",
    }
