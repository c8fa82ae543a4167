"""The sensor, evaluated by Dagster against a live server that changes between ticks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest

from laion_assets.definitions import build_defs
from laion_assets.jobs import SEGMENT_ASSETS
from laion_assets.partitions import PARTITION_TAG, partition_key
from laion_assets.settings import Discovery, Settings
from sensors.new_crawls import lacking, wanted_crawls, wanted_segments
from tests.conftest import FolderServer

OLD, NEW = "CC-MAIN-2000-05", "CC-MAIN-2000-10"


def list_crawls(root: Path, *names: str) -> None:
    (root / "collinfo.json").write_text(json.dumps([{"id": name, "name": name} for name in names]))


def publish_paths(root: Path, crawl: str, segments: Sequence[int] = (100, 200)) -> None:
    folder = root / "crawl-data" / crawl
    folder.mkdir(parents=True)
    paths = [f"crawl-data/{crawl}/segments/{s}.1/wat/0.warc.wat.gz" for s in segments]
    (folder / "wat.paths.gz").write_bytes(gzip.compress("\n".join(paths).encode()))


class World:
    """A crawl server, and the deployment's sensor on an instance of its own."""

    def __init__(
        self, root: Path, server: FolderServer, instance: dg.DagsterInstance, discovery: Discovery
    ) -> None:
        self.root, self.server, self.instance = root, server, instance
        base = Settings().crawl_source
        source = base.model_copy(
            update={
                "collinfo_url": f"{server.url}/collinfo.json",
                "data_url": server.url,
                "segments_per_crawl": 2,
                "attempts": 2,
                "back_off_s": 0.01,
            }
        )
        self.source = source
        self.cursor: str | None = None
        self.requests: list[dg.RunRequest] = []
        self.allow(discovery)

    def allow(self, discovery: Discovery) -> None:
        self.defs = build_defs(Settings(crawl_source=self.source, discovery=discovery))

    def tick(self) -> tuple[list[str], str]:
        """The run keys asked for and the skip message, after what a daemon does with a tick."""
        sensor = self.defs.get_sensor_def("new_crawl_sensor")
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursor,
            repository_def=self.defs.get_repository_def(),
            resources={"crawl_source": (self.defs.resources or {})["crawl_source"]},
        )
        result = sensor.evaluate_tick(context)
        self.requests = list(result.run_requests or [])
        for request in result.dynamic_partitions_requests or []:
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
        self.cursor = result.cursor or self.cursor
        return [str(request.run_key) for request in self.requests], result.skip_message or ""

    def ran(self, key: str, status: dg.DagsterRunStatus, made: Sequence[str] = ()) -> None:
        """Record what a daemon and a run worker would: a run of the segment, and what it made."""
        tags = {PARTITION_TAG: key}
        self.instance.create_run_for_job(
            self.defs.resolve_job_def("segment"), tags=tags, status=status
        )
        for asset in made:
            self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=key))


@pytest.fixture
def world(
    tmp_path: Path, serve_folder: Callable[[Path], FolderServer]
) -> Iterator[Callable[[Discovery], World]]:
    root = tmp_path / "served"
    root.mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield lambda discovery: World(root, serve_folder(root), instance, discovery)


def test_a_new_crawl_is_added_and_asked_for(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    assert here.tick()[0] == [f"{OLD}|00#0", f"{OLD}|01#0"]
    for key in (f"{OLD}|00", f"{OLD}|01"):
        here.ran(key, dg.DagsterRunStatus.SUCCESS, SEGMENT_ASSETS)
    assert here.tick() == ([], "1 crawls listed, 1 taken, 0 to make")

    list_crawls(here.root, NEW, OLD)
    keys, message = here.tick()
    assert keys == []
    assert f"{NEW}: " in message
    assert "is not there (yet)" in message

    publish_paths(here.root, NEW)
    assert here.tick()[0] == [f"{NEW}|00#0", f"{NEW}|01#0"]
    assert here.instance.get_dynamic_partitions("crawls") == [OLD, NEW]


def test_a_lost_tick_is_asked_for_again(world: Callable[[Discovery], World]) -> None:
    """A daemon that dies after adding the crawl and before its runs must not lose them."""
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    first = here.tick()[0]
    here.cursor = None
    assert here.tick()[0] == first


def test_what_flies_is_not_asked_for_and_what_failed_is(
    world: Callable[[Discovery], World],
) -> None:
    here = world(Discovery(attempts=2))
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    here.tick()
    here.ran(f"{OLD}|00", dg.DagsterRunStatus.STARTED)
    here.ran(f"{OLD}|01", dg.DagsterRunStatus.FAILURE, ["wat_manifest", "pair_parquet"])
    assert here.tick()[0] == [f"{OLD}|01#1"]
    assert here.requests[0].asset_selection == [dg.AssetKey(name) for name in SEGMENT_ASSETS[2:]]
    here.ran(f"{OLD}|01", dg.DagsterRunStatus.FAILURE)
    keys, message = here.tick()
    assert keys == []
    assert f"given up after 2 failed runs: {OLD}|01" in message


@pytest.mark.parametrize(("paths", "problem"), [([], "0 segments"), (range(101), "101 segments")])
def test_a_crawl_that_does_not_fit_stops_no_other(
    world: Callable[[Discovery], World], paths: Sequence[int], problem: str
) -> None:
    here = world(Discovery())
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, OLD)
    publish_paths(here.root, NEW, [100 + number for number in paths])
    assert here.tick()[0] == [f"{OLD}|00#0", f"{OLD}|01#0"]
    for key in (f"{OLD}|00", f"{OLD}|01"):
        here.ran(key, dg.DagsterRunStatus.SUCCESS, SEGMENT_ASSETS)
    assert f"{NEW}: {problem}" in here.tick()[1]


def test_a_list_that_cannot_be_read_changes_nothing(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    here.server.failing["/collinfo.json"] = 2
    keys, message = here.tick()
    assert keys == []
    assert "could not be read" in message
    assert here.tick()[0] == [f"{OLD}|00#0", f"{OLD}|01#0"]


def test_the_policy_bounds_what_is_asked_for(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery(newest=1, segments=1))
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, NEW)
    publish_paths(here.root, OLD)
    assert here.tick()[0] == [f"{NEW}|00#0"]


def test_the_pure_differences() -> None:
    listed = ["CC-MAIN-2000-10", "CC-MAIN-2000-05", "CC-MAIN-1999-50"]
    assert wanted_crawls(listed, Discovery()) == sorted(listed)
    assert wanted_crawls(listed, Discovery(newest=2)) == ["CC-MAIN-2000-05", "CC-MAIN-2000-10"]
    assert wanted_crawls(listed, Discovery(only=("CC-MAIN-1999-50",))) == ["CC-MAIN-1999-50"]
    keys = wanted_segments(OLD, 3, Discovery(segments=2))
    assert [key.segment for key in keys] == ["00", "01"]
    everything = {asset: {str(partition_key(keys[0]))} for asset in SEGMENT_ASSETS}
    assert lacking(keys[0], everything) == []
    assert lacking(keys[0], everything | {"embeddings": set()}) == list(SEGMENT_ASSETS[4:])


def test_a_raised_limit_reaches_known_crawls(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery(segments=1))
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    here.tick()
    here.ran(f"{OLD}|00", dg.DagsterRunStatus.SUCCESS, SEGMENT_ASSETS)
    here.allow(Discovery())
    assert here.tick()[0] == [f"{OLD}|01#0"]
