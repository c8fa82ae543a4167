"""What is published where, by real runs over a real lake."""

import io
import os
from pathlib import Path
from urllib.parse import unquote

import dagster as dg
import pytest
from PIL import Image

from laion_assets.defs.assets import image_shards
from laion_assets.defs.checks import outcome
from laion_assets.defs.partitions import crawls, partition_key, segment_partitions
from laion_assets.defs.publishing import Publication, publishing
from laion_assets.lake import DamagedFilesError, LocalLake
from laion_assets.layout import CATALOG, IMAGE_SHARDS, KNN_INDEX, SegmentKey
from resources.lake import LakeResource

KEY = SegmentKey("CC-MAIN-2000-05", "00")


def noise() -> bytes:
    """A picture that no other call gives."""
    encoded = io.BytesIO()
    Image.frombytes("RGB", (9, 9), os.urandom(243)).save(encoded, "PNG")
    return encoded.getvalue()


@dg.asset(name=KNN_INDEX, partitions_def=segment_partitions(2), code_version="1")
def by_segment(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with publishing(context, lake.open()) as made:
        (made.out / "ids.npy").write_bytes(b"1")
        assert made.key == KEY
    return made.result()


@dg.asset(name=CATALOG, deps=[KNN_INDEX], code_version="1")
def over_all(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with publishing(context, lake.open()) as made:
        (made.out / "catalog.duckdb").write_bytes(b"1")
        assert made.key is None
    return made.result()


@dg.asset(name=IMAGE_SHARDS, partitions_def=segment_partitions(2), code_version="1")
def refused(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with publishing(context, lake.open()) as made:
        made.require(outcome("shards_whole", "the tar cannot be read"))
    return made.result()


def run(folder: Path, instance: dg.DagsterInstance, *assets: dg.AssetsDefinition) -> LocalLake:
    instance.add_dynamic_partitions(crawls.name or "", [KEY.crawl])
    definitions = dg.Definitions(
        assets=list(assets), resources={"lake": LakeResource(root=str(folder))}
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    key = partition_key(KEY)
    job.execute_in_process(instance=instance, partition_key=key, raise_on_error=False)
    return LocalLake.at(folder)


def test_a_run_over_a_segment_publishes_an_asset_without_partitions_as_a_whole(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    lake = run(tmp_path, instance, by_segment, over_all)
    assert lake.segments(KNN_INDEX) == [KEY]
    assert lake.has(CATALOG)
    assert lake.segments(CATALOG) == []


@pytest.mark.parametrize("name", [IMAGE_SHARDS])
def test_what_fails_a_check_is_not_published(
    tmp_path: Path, instance: dg.DagsterInstance, name: str
) -> None:
    lake = run(tmp_path, instance, refused)
    assert not lake.has(name, KEY)
    assert [left.asset for left in lake.abandoned()] == [name]


@pytest.mark.parametrize("name", [IMAGE_SHARDS])
def test_a_picture_is_a_file_of_the_partition_and_no_content_of_it(
    tmp_path: Path, instance: dg.DagsterInstance, name: str
) -> None:
    @dg.asset(name=name, partitions_def=segment_partitions(2), code_version="1")
    def drawn(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with publishing(context, lake.open()) as made:
            (made.out / "00000.tar").write_bytes(b"1")
            sheet = made.picture("sheet", noise(), "a sheet")
        return made.result(sheet=sheet)

    lake = run(tmp_path, instance, drawn)
    before = lake.manifest(name, KEY)
    assert run(tmp_path, instance, drawn).manifest(name, KEY).data_version == before.data_version
    event = instance.get_latest_materialization_event(dg.AssetKey(name))
    assert event
    assert event.asset_materialization
    shown = str(event.asset_materialization.metadata["sheet"].value)
    path = lake.folder(name, KEY) / "_pictures" / "sheet.png"
    assert shown.endswith(f"`{unquote(path.as_uri())}`")
    assert Image.open(path).size == (9, 9)


def test_without_what_keeps_the_places_of_others_nothing_is_taken_over(
    tmp_path: Path,
) -> None:
    names = ("part-00000.parquet", "_ledger/part-00000.pq", "_shards/00000.tar")

    def make() -> Publication:
        with lake.publish(IMAGE_SHARDS, KEY, inputs={}, code_version="1") as staging:
            made = Publication(dg.build_asset_context(), lake, IMAGE_SHARDS, KEY, staging)
            earlier = made.earlier(kept=image_shards.ROWS)
            assert earlier is None or (earlier / names[0]).exists()
            for name in names:
                (staging.path / name).parent.mkdir(exist_ok=True)
                (staging.path / name).write_bytes(b"1")
        return made

    lake = LocalLake.at(tmp_path)
    make()
    assert make().damaged == {}
    for name in names:
        path = lake.folder(IMAGE_SHARDS, KEY) / name
        path.write_bytes(b"2")
        if name.endswith(".tar"):
            assert [*make().damaged] == [name]
            continue
        with pytest.raises(DamagedFilesError, match=f"{name} has another .* --set-aside"):
            make()
        path.write_bytes(b"1")
