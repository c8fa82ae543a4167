"""The segment's images: guarded download into webdataset shards, as img2dataset writes them."""

from functools import partial

import dagster as dg

from laion_assets.defs import checks
from laion_assets.defs.assets.lists import DOWNLOAD_POOL, tell_lists
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import download_metadata, picture
from laion_assets.defs.publishing import key_of, materialized, publishing
from laion_assets.defs.retries import tried_again
from laion_assets.download.listed_rows import met_in
from laion_assets.download.preview import contact_sheet
from laion_assets.download.segment import download_segment
from laion_assets.removals.active import FOLDERS, met_file, note_met, read_lists
from laion_assets.settings import Settings
from resources.downloader import DownloaderResource
from resources.lake import LakeResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="images",
        partitions_def=segments,
        deps=["unique_pairs", "removals", "blocklists"],
        code_version=code_version(2, settings.download, leave_out=settings.download.NOT_IN_VERSION),
        check_specs=checks.check_specs("image_shards"),
        pool=DOWNLOAD_POOL,
        kinds={"http", "webdataset"},
        description=__doc__,
        **scheduling(settings, "image_shards"),
    )
    @tried_again
    def image_shards(
        context: dg.AssetExecutionContext, lake: LakeResource, downloader: DownloaderResource
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        lists = read_lists(store.current(*FOLDERS))
        with publishing(
            context,
            store,
            key,
            upstream=["unique_pairs"],
            options=downloader,
            leave_out=downloader.NOT_IN_VERSION,
            stage_judges_parts=True,
        ) as staging:
            staging.not_content = ("*_stats.json", "_ledger/*")
            published = store.folder("image_shards", key)
            downloaded = download_segment(
                store.published("unique_pairs", key),
                staging.path,
                downloader,
                removals=lists.removals,
                blocklists=lists.blocklists,
                before=published if published.exists() else None,
            )
            counts = downloaded.counts
            staging.counts = [counts]
            kept_before = store.manifest("unique_pairs", key).stage("unique_pairs").kept
            successes = checks.successes_in(staging.path)
            checked = checks.require(
                checks.shards_whole(staging.path),
                checks.funnel_adds_up("image_shards", counts, successes, kept_before),
            )
        folder = store.folder("image_shards", key)
        met, taken = met_in(folder, lists)
        for name, of_list in met.items():
            store.update(met_file(name), partial(note_met, name=name, met=of_list))
        tell_lists(context, store, key, lists, taken)
        return materialized(
            context,
            store,
            staging,
            key,
            checks=checked,
            extra=download_metadata(downloaded)
            | {"contact_sheet": picture(contact_sheet(folder), "images with captions")},
        )

    return image_shards
