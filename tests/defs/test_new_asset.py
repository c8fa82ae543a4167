"""An asset added as CONTRIBUTING says: nothing else has to know of it."""

from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import schemas
from laion_assets.defs import build, checks
from laion_assets.defs.declaration import Asset
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.layout import PARTITIONS, WAT_MANIFEST, Partition, SegmentKey, Table, partition_of
from laion_assets.settings import Settings
from resources.lake import LakeResource

KEY = SegmentKey("CC-MAIN-2021-04", "00")
WAT_NAMES = "wat_names"
SCHEMA = pa.schema([("wat_file", pa.string())])

ASSET = Asset(WAT_NAMES, group="crawl", revision=1, checks=("schema_exact",))


def build_asset(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(**ASSET.arguments(settings, segments), deps=[WAT_MANIFEST], description="The names.")
    @retrying_transient
    def wat_names(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with publishing(context, lake.open(), upstream=[WAT_MANIFEST]) as made:
            (rows,) = made.input_rows(WAT_MANIFEST)
            names = pq.ParquetFile(rows).read(columns=["wat_file"]).cast(SCHEMA)
            pq.write_table(names, made.out / "names.parquet")
            made.require(checks.schema_exact(made.rows, SCHEMA, 1))
        return made.result()

    return wat_names


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setitem(
        PARTITIONS,  # type: ignore[arg-type]
        WAT_NAMES,
        Partition(WAT_NAMES, None, (Table("names.parquet", SCHEMA),)),
    )
    module = SimpleNamespace(ASSET=ASSET, build=build_asset)
    monkeypatch.setattr(build, "BY_SEGMENT", (*build.BY_SEGMENT, module))
    return Settings.model_validate({"lake": {"root": str(tmp_path / "lake")}})


def test_the_graph_makes_it_and_knows_all_of_it(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    defs = build.build_defs(settings)
    store = LakeResource(**settings.lake.model_dump()).open()
    with store.publish(WAT_MANIFEST, KEY, inputs={}, code_version="1") as staging:
        table = pa.Table.from_pylist(
            [{"wat_file": "a.warc.wat.gz", "taken": True, "segment_id": "1"}], schemas.WAT_MANIFEST
        )
        pq.write_table(table, staging.path / "manifest.parquet")
    instance.add_dynamic_partitions(crawls.name or "", [KEY.crawl])
    job = defs.resolve_job_def("segment")
    result = job.execute_in_process(
        instance=instance,
        partition_key=partition_key(KEY),
        asset_selection=[dg.AssetKey(WAT_NAMES)],
        resources=defs.resources,
    )
    assert result.success
    (made,) = result.asset_materializations_for_node(WAT_NAMES)
    assert made.metadata["dagster/partition_row_count"].value == 1
    (names,) = partition_of(WAT_NAMES).rows.paths(store.published(WAT_NAMES, KEY))
    assert pq.ParquetFile(names).read().to_pylist() == [{"wat_file": "a.warc.wat.gz"}]
    node = defs.resolve_asset_graph().get(dg.AssetKey(WAT_NAMES))
    assert node.check_keys
    assert node.partitions_def is not None
