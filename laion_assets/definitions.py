"""The whole system on one screen: assets, jobs, sensors, resources.

Nothing heavy (torch, faiss, img2dataset) is imported here: every run, sensor tick and page of the
UI pays for what this module imports.
"""

from __future__ import annotations

import dagster as dg

from laion_assets.defs.assets import (
    catalog,
    dalle_samples,
    dataset_report,
    embeddings,
    filtered_subset,
    image_shards,
    index_codec,
    knn_index,
    pair_parquet,
    scored_pairs,
    search_index,
    segment_stats,
    unique_pairs,
    wat_manifest,
)
from laion_assets.defs.assets import lists as outside
from laion_assets.defs.automation import follow_sensor
from laion_assets.defs.jobs import (
    aggregates_job,
    generation_job,
    lists_job,
    prune_job,
    prune_schedules,
    segment_job,
)
from laion_assets.defs.partitions import segment_partitions
from laion_assets.settings import Settings, load_settings
from resources.clip import ClipModelResource
from resources.crawl_source import CrawlSourceResource
from resources.downloader import DownloaderResource
from resources.lake import LakeResource
from resources.notifiers import notifiers
from resources.rules import (
    GenerationResource,
    IndexResource,
    PairRulesResource,
    RecipeResource,
    SafetyResource,
    WorkResource,
)
from sensors.failures import failure_sensor, resource_of
from sensors.lists import lists_sensor
from sensors.new_crawls import new_crawl_sensor


def build_defs(settings: Settings) -> dg.Definitions:
    """The asset graph of one deployment."""
    segments = segment_partitions(settings.crawl_source.segments_per_crawl)
    tell, pruning = notifiers(settings.notify), prune_job(settings.retention)
    segment, lists = segment_job(settings.subsets), lists_job()
    return dg.Definitions(
        assets=[
            *outside.build(segments, settings),
            wat_manifest.build(segments, settings),
            pair_parquet.build(segments, settings),
            unique_pairs.build(segments, settings),
            image_shards.build(segments, settings),
            embeddings.build(segments, settings),
            scored_pairs.build(segments, settings),
            filtered_subset.build(segments, settings),
            *filtered_subset.build_further(segments, settings),
            knn_index.build(segments, settings),
            segment_stats.build(segments, settings),
            index_codec.build(settings),
            search_index.build(settings),
            catalog.build(settings),
            dataset_report.build(settings),
            dalle_samples.build(settings),
        ],
        jobs=[segment, aggregates_job(), generation_job(), lists, pruning],
        schedules=prune_schedules(pruning, settings.retention),
        # What a person or the automation picks runs as the jobs do: a process of its own for each
        # step would load everything again.
        executor=dg.in_process_executor,
        sensors=[
            new_crawl_sensor(
                segment,
                settings.discovery,
                settings.crawl_source.segments_per_crawl,
                settings.subsets,
            ),
            lists_sensor(lists, segment, settings.removals, settings.subsets),
            follow_sensor(settings.subsets),
            failure_sensor(settings.notify, list(tell)),
        ],
        resources={
            "lake": LakeResource(**settings.lake.model_dump()),
            "crawl_source": CrawlSourceResource(**settings.crawl_source.model_dump()),
            "pair_rules": PairRulesResource(**settings.pairs.model_dump()),
            "downloader": DownloaderResource(**settings.download.model_dump()),
            "clip": ClipModelResource(**settings.clip.model_dump()),
            "safety": SafetyResource(**settings.safety.model_dump()),
            "recipe": RecipeResource(**settings.subset.model_dump()),
            "index": IndexResource(**settings.index.model_dump()),
            **{resource_of(name): notifier for name, notifier in tell.items()},
            "generation": GenerationResource(**settings.generation.model_dump()),
            "work": WorkResource(**settings.work.model_dump()),
        },
    )


defs = build_defs(load_settings())
