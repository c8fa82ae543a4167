"""Prometheus metrics of what real runs recorded."""

import time
from pathlib import Path

import dagster as dg
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from laion_assets.defs.partitions import crawls, partition_key, segment_partitions
from laion_assets.defs.prometheus import StageMetrics
from laion_assets.defs.publishing import publishing
from laion_assets.funnel import StageCounts
from laion_assets.layout import SegmentKey
from resources.lake import LakeResource

CRAWL = "CC-MAIN-2021-04"


@dg.asset(partitions_def=segment_partitions(2), code_version="1")
def image_shards(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with publishing(context, lake.open()) as made:
        (made.out / "00000.tar").write_bytes(b"12345")
        time.sleep(0.002)  # seconds are recorded to a thousandth
        counts = StageCounts("images")
        counts.keep(2)
        counts.reject("timeout", "http://a.test/", 3)
        made.staging.counts = [counts]
    return made.result(bytes_received=70)


def values(metrics: StageMetrics) -> dict[tuple[str, ...], float]:
    metrics.update()
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {
        (sample.name.removeprefix("laion_assets_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_counts_bytes_and_seconds_are_counted_once(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions(crawls.name or "", [CRAWL])
    defs = dg.Definitions(
        assets=[image_shards], resources={"lake": LakeResource(root=str(tmp_path / "lake"))}
    )
    job = defs.resolve_implicit_global_asset_job_def()

    def make(segment: str) -> None:
        key = partition_key(SegmentKey(CRAWL, segment))
        assert job.execute_in_process(instance=instance, partition_key=key).success

    metrics = StageMetrics(instance)
    make("00")
    assert values(metrics)["materializations_total", "image_shards"] == 1
    make("01")
    make("00")
    found = values(metrics)
    assert values(metrics) == found
    assert found["materializations_total", "image_shards"] == 3
    assert found["partitions", "image_shards"] == 2
    assert found["bytes_total", "image_shards"] == 15
    assert found["received_bytes_total", "image_shards"] == 210
    assert found["seconds_total", "image_shards"] > 0
    assert found["rows_total", "image_shards", "in", "images"] == 15
    assert found["rows_total", "image_shards", "kept", "images"] == 6
    assert found["rows_total", "image_shards", "timeout", "images"] == 9
    assert found["runs", "queued"] == 0

    again = values(StageMetrics(instance))  # a restart counts nothing again
    for name, value in again.items():
        if name[0].endswith("_total"):
            assert value == 0
        elif not name[0].endswith("_created"):
            assert value == found[name]
    assert again["rows_total", "image_shards", "timeout", "images"] == 0
    assert again["partitions", "image_shards"] == 2
