"""The whole system on one screen: assets, jobs, schedules, sensors, resources.

Nothing heavy (torch, faiss, img2dataset) is imported here: every run, sensor tick and page of the
UI pays for what this module imports.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import dagster as dg

from laion_assets.defs import verification
from laion_assets.defs.assets import (
    catalog,
    dalle_samples,
    dataset_report,
    embeddings,
    filtered_subset,
    image_shards,
    index_codec,
    knn_index,
    lists,
    near_duplicates,
    pair_parquet,
    recipe_comparison,
    scored_pairs,
    search_index,
    segment_stats,
    unique_pairs,
    wat_manifest,
)
from laion_assets.defs.automation import follow_sensor
from laion_assets.defs.jobs import (
    aggregates_job,
    comparison_job,
    generation_job,
    lists_job,
    prune_job,
    prune_schedules,
    segment_job,
)
from laion_assets.defs.partitions import segment_partitions
from laion_assets.layout import segment_assets
from laion_assets.preflight.record import unchecked
from laion_assets.settings import Settings, SettingsError
from resources.clip import ClipModelResource
from resources.crawl_source import CrawlSourceResource
from resources.downloader import DownloaderResource
from resources.lake import LakeResource
from resources.notifiers import notifiers
from resources.rules import (
    ComparisonResource,
    GenerationResource,
    IndexResource,
    NearDuplicatesResource,
    PairRulesResource,
    RecipeResource,
    SafetyResource,
    WorkResource,
)
from sensors.failures import failure_sensor, resource_of
from sensors.lists import lists_sensor
from sensors.new_crawls import new_crawl_sensor
from sensors.url_lists import url_list_sensor

BY_SEGMENT: Final = (
    wat_manifest,
    pair_parquet,
    unique_pairs,
    image_shards,
    embeddings,
    scored_pairs,
    near_duplicates,
    filtered_subset,
    knn_index,
    segment_stats,
)
"""The modules of the assets with a partition for each segment, in the order of the data's way."""

OVER_ALL: Final = (
    index_codec,
    search_index,
    catalog,
    dataset_report,
    dalle_samples,
    recipe_comparison,
)
"""The modules of the assets over all segments."""

AGGREGATES: Final = tuple(module.ASSET.name for module in OVER_ALL if module.ASSET.aggregate)
"""The assets over all segments that follow what they are made of."""


def build_defs(settings: Settings) -> dg.Definitions:
    """The asset graph of one deployment.

    Raises :class:`SettingsError` if a subset could not be taken, for want of a threshold: a run
    would find out only after it has downloaded and embedded a segment.
    """
    if missing := settings.missing_thresholds():
        raise SettingsError(missing)
    segments = segment_partitions(settings.crawl_source.segments_per_crawl)
    tell, pruning = notifiers(settings.notify), prune_job(settings.retention)
    by_segment = segment_assets(settings.subsets)
    segment, observe = segment_job(by_segment), lists_job()
    whole = verification.build([*by_segment, *(module.ASSET.name for module in OVER_ALL)])
    verify = verification.verify_job(whole)
    return dg.Definitions(
        assets=[
            *lists.build(segments),
            *(module.build(segments, settings) for module in BY_SEGMENT),
            *filtered_subset.build_further(segments, settings),
            *(module.build(settings) for module in OVER_ALL),
        ],
        asset_checks=[whole],
        jobs=[
            segment,
            aggregates_job(AGGREGATES),
            generation_job(),
            comparison_job(),
            observe,
            pruning,
            verify,
        ],
        schedules=[
            *prune_schedules(pruning, settings.retention),
            *verification.schedules(verify, settings.verification),
        ],
        # What a person or the automation picks runs as the jobs do: a process of its own for each
        # step would load everything again.
        executor=dg.in_process_executor,
        sensors=[
            new_crawl_sensor(
                segment,
                settings.discovery,
                settings.crawl_source.segments_per_crawl,
                settings.subsets,
                unchecked=partial(unchecked, settings),
            ),
            *(
                [
                    url_list_sensor(
                        segment,
                        settings.lists,
                        settings.discovery,
                        settings.crawl_source.segments_per_crawl,
                        settings.subsets,
                        unchecked=partial(unchecked, settings),
                    )
                ]
                if settings.lists
                else []
            ),
            lists_sensor(observe, segment, settings.removals, settings.subsets),
            follow_sensor([*by_segment, *AGGREGATES]),
            failure_sensor(settings.notify, list(tell)),
        ],
        resources={
            "lake": LakeResource.of(settings.lake),
            "crawl_source": CrawlSourceResource.of(settings.crawl_source),
            "pair_rules": PairRulesResource.of(settings.pairs),
            "downloader": DownloaderResource.of(settings.download),
            "clip": ClipModelResource.of(settings.clip),
            "safety": SafetyResource.of(settings.safety),
            "near_duplicate_rules": NearDuplicatesResource.of(settings.near_duplicates),
            "recipe": RecipeResource.of(settings.subset),
            "index": IndexResource.of(settings.index),
            **{resource_of(name): notifier for name, notifier in tell.items()},
            "generation": GenerationResource.of(settings.generation),
            "comparison": ComparisonResource.of(settings.comparison),
            "work": WorkResource.of(settings.work),
        },
    )
