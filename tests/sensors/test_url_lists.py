"""Lists in the settings: their segments are requested, made, and made again when files change."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.lake import LakeOptions, open_lake
from laion_assets.layout import SEGMENT_ASSETS, SegmentKey
from laion_assets.preflight.record import record
from laion_assets.schemas import sample_id_of
from laion_assets.settings import Discovery, Settings
from laion_assets.tables import read_parquet
from laion_assets.url_lists.options import UrlListOptions
from sensors import segment_runs
from sensors.segment_runs import LAST_ASSET
from sensors.url_lists import NAME

CRAWL = "LIST-mine"


def write_list(path: Path, numbers: Sequence[int]) -> None:
    rows = [(f"https://a.example/{n}.jpg", f"a photo of house number {n}") for n in numbers]
    urls, texts = zip(*rows, strict=True)
    pq.write_table(pa.table({"URL": urls, "TEXT": texts, "similarity": [0.3] * len(rows)}), path)


class World:
    """A deployment with one list, and its sensor."""

    def __init__(
        self,
        root: Path,
        instance: dg.DagsterInstance,
        rows_per_segment: int,
        *,
        require_check: bool = False,
    ) -> None:
        self.files, self.instance = root / "files", instance
        self.files.mkdir()
        listed = UrlListOptions(
            name="mine", files=(str(self.files),), rows_per_segment=rows_per_segment
        )
        self.settings = Settings(
            lake=LakeOptions(root=str(root / "lake")),
            lists=(listed,),
            discovery=Discovery(interval_s=1, require_check=require_check),
        )
        self.defs = build_defs(self.settings)
        self.lake = open_lake(self.settings.lake)
        self.cursor: str | None = None
        self.clock = 1_700_000_000.0
        self.requests: list[dg.RunRequest] = []

    def tick(self) -> tuple[list[str], str]:
        """Tick after some time; return the requested partitions and the skip message."""
        self.clock += 10_000
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursor,
            repository_def=self.defs.get_repository_def(),
            resources={"lake": (self.defs.resources or {})["lake"]},
        )
        result = self.defs.get_sensor_def(NAME).evaluate_tick(context)
        self.requests = list(result.run_requests or [])
        for added in result.dynamic_partitions_requests or []:
            assert isinstance(added, dg.AddDynamicPartitionsRequest)
            self.instance.add_dynamic_partitions(
                added.partitions_def_name, list(added.partition_keys)
            )
        self.cursor = result.cursor or self.cursor
        return [str(request.partition_key) for request in self.requests], result.skip_message or ""

    def make(self, number: str, *assets: str, tags: Mapping[str, str] | None = None) -> None:
        """Make assets of a segment; the last is only said to be made."""
        key = SegmentKey(CRAWL, number)
        done = self.defs.resolve_job_def("segment").execute_in_process(
            instance=self.instance,
            partition_key=str(partition_key(key)),
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            tags=dict(tags or {}),
        )
        assert done.success
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(LAST_ASSET, partition=str(partition_key(key)))
        )

    def texts(self, number: str) -> list[int]:
        """The numbers in a segment's texts; its list's own columns must be beside them."""
        folder = self.lake.published("pair_parquet", SegmentKey(CRAWL, number))
        part = read_parquet(folder / "part-00000.parquet", ["uid", "text"])
        if len(part):
            own = pq.ParquetFile(folder / "_source" / "part-00000.pq").read()
            assert own.schema.names == ["SAMPLE_ID", "source_similarity"]
            assert own["SAMPLE_ID"].to_pylist() == [
                sample_id_of(uid) for uid in part["uid"].to_pylist()
            ]
        return [int(text.split()[-1]) for text in part["text"].to_pylist()]


@pytest.fixture
def world(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> World:
    here = World(tmp_path, instance, rows_per_segment=30)
    monkeypatch.setattr(segment_runs, "now", lambda: here.clock)
    return here


def test_a_list_is_made_and_made_again_where_it_has_changed(world: World) -> None:
    write_list(world.files / "a.parquet", range(20))
    write_list(world.files / "b.parquet", range(20, 50))
    assert world.tick()[0] == [f"{CRAWL}|00", f"{CRAWL}|01"]
    assert world.instance.get_dynamic_partitions(crawls.name or "") == [CRAWL]
    for number in ("00", "01"):
        world.make(number, "wat_manifest", "pair_parquet")
    assert world.texts("00") == list(range(30))
    assert world.texts("01") == list(range(30, 50))
    manifest = world.lake.published("wat_manifest", SegmentKey(CRAWL, "00")) / "manifest.parquet"
    assert read_parquet(manifest, ["wat_file"])["wat_file"].to_pylist() == [
        "a.parquet",
        "b.parquet#0-10",
    ]
    assert world.tick() == ([], "1 lists, 0 segments to build, 0 changed")

    write_list(world.files / "b.parquet", [*range(20, 49), 99])
    write_list(world.files / "c.parquet", range(50, 70))
    requested, _ = world.tick()
    # What is missing goes before what has changed, which is requested as a whole.
    assert requested == [f"{CRAWL}|02", f"{CRAWL}|00", f"{CRAWL}|01"]
    selections = {len(request.asset_selection or ()) for request in world.requests}
    assert selections == {
        len(world.defs.resolve_job_def("segment").asset_layer.selected_asset_keys)
    }
    for number in ("00", "01", "02"):
        world.make(number, "wat_manifest", "pair_parquet")
    assert world.texts("01") == [*range(30, 49), 99, *range(50, 60)]
    assert world.texts("02") == list(range(60, 70))
    assert world.tick()[0] == []

    (world.files / "c.parquet").unlink()
    assert world.tick()[0] == [f"{CRAWL}|01", f"{CRAWL}|02"]
    world.make("02", "wat_manifest", "pair_parquet")
    assert world.texts("02") == []


def test_pairs_are_not_made_of_files_that_changed_since_the_manifest(world: World) -> None:
    write_list(world.files / "a.parquet", range(5))
    world.tick()
    world.make("00", "wat_manifest")
    write_list(world.files / "a.parquet", range(6))
    with pytest.raises(dg.Failure, match="LIST-mine have changed"):
        world.make("00", "pair_parquet")
    world.tick()
    (request,) = world.requests
    assert len(request.asset_selection or ()) == len(SEGMENT_ASSETS)


def test_a_list_that_cannot_be_read_or_cut_is_named_and_nothing_is_requested(world: World) -> None:
    assert "there are no lists" in world.tick()[1]
    pq.write_table(pa.table({"url": ["https://a.example/1.jpg"]}), world.files / "a.parquet")
    assert "no column with a known name of captions" in world.tick()[1]
    (world.files / "a.parquet").write_bytes(b"nonsense")
    requested, message = world.tick()
    assert requested == []
    assert "a.parquet cannot be read as parquet" in message
    assert world.instance.get_dynamic_partitions(crawls.name or "") == []
    write_list(world.files / "a.parquet", range(3001))
    assert (
        "LIST-mine has 3,001 rows, 101 segments of 30: set rows_per_segment to 31"
        in (world.tick()[1])
    )


def test_what_runs_see_otherwise_is_requested_once_and_then_named(world: World) -> None:
    write_list(world.files / "a.parquet", range(5))
    world.tick()
    world.make("00", "wat_manifest")
    # The sensor sees another file than the run does.
    here = world.files / "a.parquet"
    before = here.read_bytes(), here.stat()
    write_list(here, range(6))
    assert world.tick()[0] == [f"{CRAWL}|00"]
    seen = here.read_bytes(), here.stat()
    for contents, about in (before, seen):
        here.write_bytes(contents)
        os.utime(here, ns=(about.st_atime_ns, about.st_mtime_ns))
        if about is before[1]:
            world.make("00", "wat_manifest", tags=world.requests[0].tags)
    requested, message = world.tick()
    assert requested == []
    assert "made again, and still of other rows than this sensor sees" in message
    assert f"{CRAWL}|00" in message
    write_list(here, range(7))
    assert world.tick()[0] == [f"{CRAWL}|00"]


def test_nothing_is_asked_of_lists_hosts_before_the_check(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    world = World(tmp_path, instance, rows_per_segment=30, require_check=True)
    write_list(world.files / "a.parquet", range(5))
    requested, message = world.tick()
    assert requested == []
    assert "laion-assets check" in message
    record(world.settings, [])
    assert world.tick()[0] == [f"{CRAWL}|00"]
