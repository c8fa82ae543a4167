"""One run of the whole graph over the sample crawl: real servers, a real Dagster instance."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import pytest

from laion_assets.defs.build import build_defs
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.sample_crawl.build import build_sample_crawl
from laion_assets.sample_crawl.server import SampleServer
from laion_assets.settings import DAGSTER_CONFIG, Settings, load_settings, sample_config


@dataclass
class World:
    """A materialized sample world, and everything needed to query it."""

    root: Path
    crawl: Path
    config: Path
    settings: Settings
    server: SampleServer
    instance: dg.DagsterInstance
    defs: dg.Definitions
    requested: list[str]

    @property
    def lake(self) -> LocalLake:
        return LocalLake(self.settings.lake)

    @property
    def keys(self) -> list[SegmentKey]:
        return [SegmentKey.parse(key) for key in self.requested]

    @property
    def index(self) -> Path:
        return self.lake.published("search_index")

    def tick(self) -> dg.SensorExecutionData:
        """Evaluate the crawl sensor once, and add its partitions as the daemon does."""
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            repository_def=self.defs.get_repository_def(),
            resources={"crawl_source": (self.defs.resources or {})["crawl_source"]},
        )
        result = self.defs.get_sensor_def("new_crawl_sensor").evaluate_tick(context)
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
        return result

    def run(
        self, job: str, partition: str | None = None, **options: object
    ) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_job_def(job).execute_in_process(
            instance=self.instance, partition_key=partition, **options
        )


def sample_settings(root: Path, server: SampleServer) -> tuple[Path, Settings]:
    """The shipped sample settings, adapted to a server on a free port and the test's own lake."""
    values = tomllib.loads(sample_config().read_text())
    # The list has tests of its own; here, everything is counted by the manifest of the crawls.
    del values["lists"]
    values["lake"]["root"] = str(root / "lake")
    values["crawl_source"]["collinfo_url"] = f"{server.url}collinfo.json"
    values["crawl_source"]["data_url"] = server.url
    values["download"]["connect_to"] = server.connect_to
    values["subsets"] = {
        "laion5b-en": {"recipe": "laion5b-en"},
        "portraits": {"where": "height > width"},
    }
    config = root / "config.toml"
    lines = []
    for section, content in values.items():
        lines.append(f"[{section}]")
        for name, value in content.items():
            if isinstance(value, dict):
                inner = ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items())
                lines.append(f"{name} = {{ {inner} }}")
            else:
                lines.append(f"{name} = {json.dumps(value)}")
    config.write_text("\n".join(lines))
    return config, load_settings(config)


@pytest.fixture(scope="session")
def sample_crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample crawl with all its cases, a tenth of the other pages, and those with pictures that
    there are copies of. All of them, as the demo has them, would take a minute more."""
    crawl = tmp_path_factory.mktemp("crawl")
    build_sample_crawl(crawl, ordinary=0.1)
    return crawl


@pytest.fixture(scope="session")
def sample_server(sample_crawl: Path) -> Iterator[SampleServer]:
    with SampleServer(sample_crawl) as server:
        yield server


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory, sample_crawl: Path, sample_server: SampleServer
) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    config, settings = sample_settings(root, sample_server)
    defs = build_defs(settings)
    (root / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(root / "home")) as instance:
        world = World(root, sample_crawl, config, settings, sample_server, instance, defs, [])
        requests = world.tick().run_requests or []
        for request in requests:
            assert request.partition_key
            assert world.run("segment", request.partition_key).success
            world.requested.append(str(request.partition_key))
        assert world.run("aggregates").success
        yield world


@pytest.fixture(scope="module")
def copy(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A copy of the world that a module may change; its instance is one that commands open."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(world.root / "lake", root / "lake")
    shutil.copytree(world.root / "home", root / "home")
    shutil.copyfile(DAGSTER_CONFIG, root / "home" / "dagster.yaml")
    config = root / "config.toml"
    config.write_text(world.config.read_text().replace(str(world.root), str(root)))
    settings = load_settings(config)
    with dg.DagsterInstance.from_config(str(root / "home")) as instance:
        yield replace(
            world,
            root=root,
            config=config,
            settings=settings,
            instance=instance,
            defs=build_defs(settings),
        )
