"""The sensor, evaluated by Dagster against a live server that changes between ticks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from laion_assets.definitions import build_defs
from laion_assets.settings import Discovery, Settings
from sensors.new_crawls import new_crawls, wanted_crawls, wanted_segments
from tests.conftest import FolderServer

OLD, NEW = "CC-MAIN-2000-05", "CC-MAIN-2000-10"


def list_crawls(root: Path, *names: str) -> None:
    (root / "collinfo.json").write_text(json.dumps([{"id": name, "name": name} for name in names]))


def publish_paths(root: Path, crawl: str) -> None:
    folder = root / "crawl-data" / crawl
    folder.mkdir(parents=True)
    paths = [f"crawl-data/{crawl}/segments/{s}.1/wat/0.warc.wat.gz" for s in (100, 200)]
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
        self.defs = build_defs(Settings(crawl_source=source, discovery=discovery))

    def tick(self) -> tuple[list[str], str | None]:
        """The run keys asked for and the skip message, after what a daemon does with a tick."""
        sensor = self.defs.get_sensor_def("new_crawl_sensor")
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            repository_def=self.defs.get_repository_def(),
            resources=self.defs.resources and {"crawl_source": self.defs.resources["crawl_source"]},
        )
        result = sensor.evaluate_tick(context)
        for request in result.dynamic_partitions_requests or []:
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
        return [str(r.run_key) for r in result.run_requests or []], result.skip_message


@pytest.fixture
def world(
    tmp_path: Path, serve_folder: Callable[[Path], FolderServer]
) -> Iterator[Callable[[Discovery], World]]:
    root = tmp_path / "served"
    root.mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield lambda discovery: World(root, serve_folder(root), instance, discovery)


def test_a_new_crawl_is_added_and_asked_for_once(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    assert here.tick()[0] == [f"{OLD}|00", f"{OLD}|01"]
    keys, message = here.tick()
    assert keys == []
    assert message
    assert "all known" in message

    list_crawls(here.root, NEW, OLD)
    keys, message = here.tick()
    assert keys == []
    assert message
    assert f"{NEW}: " in message
    assert "is not there (yet)" in message

    publish_paths(here.root, NEW)
    assert here.tick()[0] == [f"{NEW}|00", f"{NEW}|01"]
    assert here.instance.get_dynamic_partitions("crawls") == [OLD, NEW]


def test_a_list_that_cannot_be_read_changes_nothing(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    here.server.failing["/collinfo.json"] = 2
    keys, message = here.tick()
    assert keys == []
    assert message
    assert "could not be read" in message
    assert here.tick()[0] == [f"{OLD}|00", f"{OLD}|01"]


def test_the_policy_bounds_what_is_asked_for(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery(newest=1, segments=1))
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, NEW)
    publish_paths(here.root, OLD)
    assert here.tick()[0] == [f"{NEW}|00"]


def test_the_pure_differences() -> None:
    listed = ["CC-MAIN-2000-10", "CC-MAIN-2000-05", "CC-MAIN-1999-50"]
    assert wanted_crawls(listed, Discovery()) == sorted(listed)
    assert wanted_crawls(listed, Discovery(newest=2)) == ["CC-MAIN-2000-05", "CC-MAIN-2000-10"]
    assert wanted_crawls(listed, Discovery(only=("CC-MAIN-1999-50",))) == ["CC-MAIN-1999-50"]
    assert new_crawls(listed, {"CC-MAIN-2000-05"}) == ["CC-MAIN-2000-10", "CC-MAIN-1999-50"]
    keys = wanted_segments(OLD, ["02", "00", "01"], Discovery(segments=2))
    assert [key.segment for key in keys] == ["00", "01"]
