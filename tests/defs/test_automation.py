"""What a change makes stale, and what is then asked for: Dagster's own reckoning on the graph's
real specs, made by real runs of assets that do nothing but record what they are made of.

docs/scheduling.md tells each of these cases.
"""

from dataclasses import replace

import dagster as dg
import pytest
from dagster._core.definitions.data_version import (
    DATA_VERSION_TAG,
    CachingStaleStatusResolver,
    StaleStatus,
)
from dagster._core.loader import LoadingContextForTest

from laion_assets.defs.assets import embeddings
from laion_assets.defs.build import AGGREGATES, build_defs
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.layout import LISTS, SEGMENT_ASSETS, SegmentKey
from laion_assets.settings import Automation, Settings

CRAWL = "CC-MAIN-2021-04"
KEYS = [str(partition_key(SegmentKey(CRAWL, name))) for name in ("00", "01")]
SMALL = Settings().crawl_source.model_copy(update={"segments_per_crawl": 2})
ALL = {*SEGMENT_ASSETS, "subset_portraits"}


def settings(**changes: object) -> Settings:
    """``changes``: of the form ``clip={"model": ...}``."""
    base = Settings.model_validate(
        {"crawl_source": SMALL, "subsets": {"portraits": {"where": "height > width"}}}
    )
    updated = {
        name: getattr(base, name).model_copy(update=change)
        for name, change in changes.items()
        if isinstance(change, dict)
    }
    return base.model_copy(update={**changes, **updated})


class Graph:
    """A deployment whose settings change: its real specs, and content that says what it is of."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.content: dict[tuple[str, str | None], str] = {}
        self.cursor: object = None
        self.deploy(settings())

    def deploy(self, of: Settings) -> None:
        real = build_defs(of)
        specs = [
            spec.replace_attributes(skippable=False)
            for assets in real.assets or ()
            if isinstance(assets, dg.AssetsDefinition)
            for spec in assets.specs
        ]
        outside = [asset for asset in real.assets or () if isinstance(asset, dg.SourceAsset)]
        self.defs = dg.Definitions(
            assets=[*outside, *(self._stub(spec) for spec in specs)],
            resources=real.resources,
            executor=dg.in_process_executor,
        )

    def _stub(self, spec: dg.AssetSpec) -> dg.AssetsDefinition:
        name = spec.key.path[-1]

        @dg.multi_asset(name=name, specs=[spec], can_subset=False)
        def stub(context):  # type: ignore[no-untyped-def]
            key = context.partition_key if context.has_partition_key else None
            told = self.content.get((name, key), "")
            return dg.MaterializeResult(
                asset_key=spec.key, data_version=dg.DataVersion(f"{spec.code_version} {told}")
            )

        return stub

    def make(self, *assets: str, keys: list[str] | None = None) -> None:
        job = self.defs.resolve_implicit_global_asset_job_def()
        for key in keys or KEYS:
            result = job.execute_in_process(
                instance=self.instance,
                partition_key=None if set(assets) <= set(AGGREGATES) else key,
                asset_selection=[dg.AssetKey(asset) for asset in assets],
            )
            assert result.success
            if set(assets) <= set(AGGREGATES):
                break

    def stale(self) -> dict[str, set[str]]:
        """Partition -> the segment's assets that Dagster calls stale."""
        resolver = CachingStaleStatusResolver(
            self.instance, self.defs.resolve_asset_graph(), LoadingContextForTest(self.instance)
        )
        return {
            key: {
                name
                for name in ALL
                if resolver.get_status(dg.AssetKey(name), key) == StaleStatus.STALE
            }
            for key in KEYS
        }

    def tick(self) -> dict[str, set[str]]:
        """Partition (or "") -> the assets that the automation asks for."""
        result = dg.evaluate_automation_conditions(
            self.defs,
            self.instance,
            cursor=self.cursor,  # type: ignore[arg-type]
        )
        self.cursor = result.cursor
        asked: dict[str, set[str]] = {}
        for name in ALL:
            for key in result.get_requested_partitions(dg.AssetKey(name)):
                asked.setdefault(key or "", set()).add(name)
        for name in AGGREGATES:
            if result.get_num_requested(dg.AssetKey(name)):
                asked.setdefault("", set()).add(name)
        return asked


@pytest.fixture
def graph() -> Graph:
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(crawls.name or "", [CRAWL])
    graph = Graph(instance)
    graph.tick()
    graph.make(*sorted(ALL))
    assert graph.stale() == {key: set() for key in KEYS}
    assert graph.tick() == {"": set(AGGREGATES)}
    graph.make(*AGGREGATES)
    assert graph.tick() == {}
    return graph


def test_a_changed_setting_makes_its_own_assets_stale_and_asks_for_nothing(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"model": "laion-assets-tiny", "pretrained": "laion-assets-tiny"}
    cases: list[tuple[Settings, set[str]]] = [
        (settings(pairs={"min_text_chars": 7}), {"pair_parquet"}),
        # Thresholds belong to models: other subsets are wanted, too.
        (settings(clip=tiny), {"embeddings", "filtered_subset", "subset_portraits"}),
        (settings(safety={"prompts": "sample"}), {"scored_pairs"}),
        (settings(subset={"threshold": 0.31}), {"filtered_subset"}),
        (settings(index={"flat_below": 7}), {"knn_index"}),
    ]
    for changed, stale in cases:
        graph.deploy(changed)
        assert graph.stale() == dict.fromkeys(KEYS, stale)
        assert set(graph.tick()) <= {""}  # the index's options are `search_index`'s, too
    raised = replace(embeddings.ASSET, revision=embeddings.ASSET.revision + 1)
    monkeypatch.setattr(embeddings, "ASSET", raised)
    graph.deploy(settings())
    assert graph.stale() == {key: {"embeddings"} for key in KEYS}


def test_what_was_made_again_is_followed_where_its_content_has_changed(graph: Graph) -> None:
    graph.content["embeddings", KEYS[1]] = "of another model"
    graph.make("embeddings")
    made_of_it = {"scored_pairs", "near_duplicates", "filtered_subset", "subset_portraits"}
    made_of_it.add("segment_stats")
    assert graph.stale() == {KEYS[0]: set(), KEYS[1]: made_of_it}
    # And what is made of these, in the same run.
    asked = {*made_of_it, "knn_index"}
    assert graph.tick() == {KEYS[1]: asked}
    graph.make(*sorted(asked), keys=KEYS[1:])
    assert graph.stale() == {key: set() for key in KEYS}
    assert graph.tick() == {"": set(AGGREGATES)}


def test_what_costs_much_waits_for_a_person(graph: Graph) -> None:
    graph.content["pair_parquet", KEYS[0]] = "other pairs"
    graph.make("pair_parquet", keys=KEYS[:1])
    assert graph.stale() == {KEYS[0]: {"unique_pairs", "segment_stats"}, KEYS[1]: set()}
    # The statistics are of the pairs themselves, too.
    assert graph.tick() == {KEYS[0]: {"segment_stats"}}
    graph.make("segment_stats", "index_codec", keys=KEYS[:1])
    assert graph.stale() == {KEYS[0]: {"unique_pairs", "knn_index"}, KEYS[1]: {"knn_index"}}
    assert set(graph.tick()) <= {""}


def test_the_policy_says_which_code_and_inputs_are_followed(graph: Graph) -> None:
    policy = Automation(
        inputs=("filtered_subset", "subsets", "knn_index", "segment_stats"), code=("scored_pairs",)
    )
    graph.deploy(settings(automation=policy))
    assert graph.tick() == {}
    graph.deploy(settings(automation=policy, safety={"prompts": "sample"}))
    graph.make("scored_pairs", keys=KEYS[:1])  # by hand meanwhile: its code is current
    after = {"filtered_subset", "subset_portraits", "knn_index", "segment_stats"}
    assert graph.tick() == {KEYS[0]: after, KEYS[1]: {"scored_pairs", *after}}


def test_a_changed_list_makes_its_partitions_stale_and_its_own_sensor_asks(graph: Graph) -> None:
    def observe(version: str) -> None:
        for name in LISTS:
            graph.instance.report_runless_asset_event(
                dg.AssetObservation(name, partition=KEYS[0], tags={DATA_VERSION_TAG: version})
            )

    made_by_lists = {"pair_parquet", "unique_pairs", "image_shards"}
    observe("1")
    graph.make(*sorted(made_by_lists))
    graph.tick()
    observe("2")
    assert graph.stale() == {KEYS[0]: made_by_lists, KEYS[1]: set()}
    assert graph.tick() == {}
