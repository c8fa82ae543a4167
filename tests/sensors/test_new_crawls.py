"""The sensor, evaluated by Dagster, against a live server that changes between ticks."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.utils import make_new_run_id
from sqlalchemy.engine import Engine
from sqlalchemy.event import listen

from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import INTERRUPTED_TAG, PARTITION_TAG, partition_key
from laion_assets.filtering.recipe import load_recipe
from laion_assets.lake import LakeOptions
from laion_assets.layout import SEGMENT_ASSETS, segment_assets
from laion_assets.preflight.record import record
from laion_assets.settings import Discovery, Settings
from sensors import segment_runs
from sensors.new_crawls import NAME, wanted_crawls, wanted_segments
from sensors.runs import SENSOR_TAG
from sensors.segment_runs import LAST_ASSET, lacking
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
    """A crawl server, and the deployment's sensor on its own instance."""

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
        self.clock = 1_700_000_000.0
        self.requests: list[dg.RunRequest] = []
        self.allow(discovery)

    def allow(self, discovery: Discovery) -> None:
        self.defs = build_defs(Settings(crawl_source=self.source, discovery=discovery))

    def later(self) -> tuple[list[str], str]:
        """Tick when the list is due to be refetched."""
        self.clock += Discovery().interval_s
        return self.tick()

    def tick(self) -> tuple[list[str], str]:
        """Tick as the daemon does; return the requested run keys and the skip message."""
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

    def ran(
        self,
        key: str,
        status: dg.DagsterRunStatus,
        made: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Record a run of the segment and what it made, as a daemon and a run worker would.

        Returns the run's short id.
        """
        run = self.instance.add_run(
            dg.DagsterRun(
                "segment",
                run_id=make_new_run_id(),
                tags={PARTITION_TAG: key, SENSOR_TAG: NAME, **(tags or {})},
                status=status,
            )
        )
        for asset in made:
            self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=key))
        return run.run_id[:8]


@pytest.fixture
def world(
    tmp_path: Path,
    serve_folder: Callable[[Path], FolderServer],
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Discovery], World]:
    root = tmp_path / "served"
    root.mkdir()

    def make(discovery: Discovery) -> World:
        here = World(root, serve_folder(root), instance, discovery)
        monkeypatch.setattr(segment_runs, "now", lambda: here.clock)
        return here

    return make


def test_a_new_crawl_is_added_and_requested(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    assert here.tick()[0] == [f"{OLD}|00#0", f"{OLD}|01#0"]
    for key in (f"{OLD}|00", f"{OLD}|01"):
        here.ran(key, dg.DagsterRunStatus.SUCCESS, SEGMENT_ASSETS)
    assert here.tick() == ([], "1 crawls listed, 1 selected, 0 segments to build")

    list_crawls(here.root, NEW, OLD)
    assert here.tick() == ([], "1 crawls listed, 1 selected, 0 segments to build")
    keys, message = here.later()
    assert keys == []
    assert f"{NEW}: " in message
    assert "does not exist (yet)" in message

    publish_paths(here.root, NEW)
    assert here.later()[0] == [f"{NEW}|00#0", f"{NEW}|01#0"]
    assert here.instance.get_dynamic_partitions("crawls") == [OLD, NEW]


def test_a_real_crawl_source_is_asked_nothing_before_the_check(
    world: Callable[[Discovery], World], tmp_path: Path
) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD, [100])
    # To the system this is loopback, and to everybody else an address of any machine.
    url = here.server.url.replace("127.0.0.1", "0.0.0.0")
    settings = Settings(
        lake=LakeOptions(root=str(tmp_path / "lake")),
        crawl_source=here.source.model_copy(
            update={"collinfo_url": f"{url}/collinfo.json", "data_url": url}
        ),
    )
    here.defs = build_defs(settings)
    keys, message = here.tick()
    assert keys == []
    assert "these settings have not been checked. Run `laion-assets check`" in message
    record(settings, ["contact: nobody can reach you"])
    assert "contact: nobody can reach you" in here.tick()[1]
    assert here.server.answered == []
    record(settings, [])
    assert here.tick()[0] == [f"{OLD}|00#0"]


def test_a_lost_tick_is_repeated(world: Callable[[Discovery], World]) -> None:
    """A daemon that dies between adding the crawl and requesting its runs must not lose them."""
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    first = here.tick()[0]
    here.cursor = None
    assert here.tick()[0] == first


def test_runs_in_flight_are_not_requested_and_failed_ones_are(
    world: Callable[[Discovery], World],
) -> None:
    here = world(Discovery(attempts=2))
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    here.tick()
    here.ran(f"{OLD}|00", dg.DagsterRunStatus.STARTED)
    failed = here.ran(f"{OLD}|01", dg.DagsterRunStatus.FAILURE, ["wat_manifest", "pair_parquet"])
    assert here.tick()[0] == [f"{OLD}|01#{failed}"]
    assert here.requests[0].asset_selection == [dg.AssetKey(name) for name in SEGMENT_ASSETS[2:]]
    here.ran(f"{OLD}|01", dg.DagsterRunStatus.FAILURE)
    keys, message = here.tick()
    assert keys == []
    assert f"given up after 2 failed runs: {OLD}|01" in message


def test_a_run_that_a_person_interrupted_is_no_failure(
    world: Callable[[Discovery], World],
) -> None:
    here = world(Discovery(attempts=1))
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    here.tick()
    interrupted = {INTERRUPTED_TAG: "true"}
    here.ran(f"{OLD}|00", dg.DagsterRunStatus.STARTED)
    here.ran(f"{OLD}|01", dg.DagsterRunStatus.FAILURE, tags=interrupted)
    last = here.ran(f"{OLD}|01", dg.DagsterRunStatus.FAILURE, tags=interrupted)
    assert here.tick()[0] == [f"{OLD}|01#{last}"]


@pytest.mark.parametrize(
    ("paths", "problem"),
    [([], "0 segments"), (range(101), "101 segments"), (None, "invalid block type")],
)
def test_a_crawl_that_does_not_fit_does_not_stop_others(
    world: Callable[[Discovery], World], paths: Sequence[int] | None, problem: str
) -> None:
    here = world(Discovery())
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, OLD)
    publish_paths(here.root, NEW, [100 + number for number in paths or ()])
    if paths is None:
        damaged = here.root / "crawl-data" / NEW / "wat.paths.gz"
        raw = bytearray(gzip.compress(b"nothing"))
        raw[10] = 0x07  # no deflate block has this type
        damaged.write_bytes(raw)
    assert here.tick()[0] == [f"{OLD}|00#0", f"{OLD}|01#0"]
    for key in (f"{OLD}|00", f"{OLD}|01"):
        here.ran(key, dg.DagsterRunStatus.SUCCESS, SEGMENT_ASSETS)
    message = here.tick()[1]
    assert f"{NEW}: " in message
    assert problem in message


def test_a_list_that_cannot_be_read_changes_nothing(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    here.server.failing["/collinfo.json"] = 2
    keys, message = here.tick()
    assert keys == []
    assert "could not be read" in message
    assert here.later()[0] == [f"{OLD}|00#0", f"{OLD}|01#0"]


def test_the_list_is_sent_only_when_it_has_changed(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    for _ in range(2):
        assert here.later()[0] == [f"{OLD}|00#0", f"{OLD}|01#0"]
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, NEW)
    assert here.later()[0] == [f"{c}|{s}#0" for c in (NEW, OLD) for s in ("00", "01")]
    statuses = [status for path, status in here.server.answered if path == "/collinfo.json"]
    assert statuses == [200, 304, 200]
    # A crawl's segments are counted once.
    assert len(here.server.answered) == len(statuses) + 2


def test_a_server_that_is_down_is_asked_less_and_less(
    world: Callable[[Discovery], World],
) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD)
    here.tick()
    here.server.failing["/collinfo.json"] = 1000
    here.server.answered.clear()
    asked = []
    for _ in range(16):
        keys, message = here.later()
        # Work on what is known already continues.
        assert keys == [f"{OLD}|00#0", f"{OLD}|01#0"]
        asked.append(len(here.server.answered))
        here.server.answered.clear()
    assert [hour for hour, requests in enumerate(asked, 1) if requests] == [1, 2, 4, 8, 16]
    for key in (f"{OLD}|00", f"{OLD}|01"):
        here.ran(key, dg.DagsterRunStatus.SUCCESS, SEGMENT_ASSETS)
    message = here.tick()[1]
    assert "could not be read" in message
    assert "(5 times in a row); next try at 2023-11-16T06:13+00:00" in message


def test_a_run_that_dagster_is_about_to_retry_is_left_to_it(
    world: Callable[[Discovery], World],
) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD, [100])
    here.tick()
    here.ran(f"{OLD}|00", dg.DagsterRunStatus.FAILURE, tags={"dagster/will_retry": "true"})
    assert here.tick()[0] == []


def test_a_run_that_ends_during_the_tick_is_not_requested_again(
    world: Callable[[Discovery], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD, [100])
    assert here.tick()[0] == [f"{OLD}|00#0"]
    read = here.instance.get_materialized_partitions

    def read_and_end(asset: dg.AssetKey) -> set[str]:
        made = read(asset)
        here.ran(f"{OLD}|00", dg.DagsterRunStatus.SUCCESS, SEGMENT_ASSETS)
        return made

    monkeypatch.setattr(
        type(here.instance), "get_materialized_partitions", staticmethod(read_and_end)
    )
    assert here.tick()[0] == []  # an empty selection would mean all assets


def test_the_newest_crawl_goes_first(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery(at_most=3))
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, NEW)
    publish_paths(here.root, OLD)
    assert here.tick()[0] == [f"{NEW}|00#0", f"{NEW}|01#0", f"{OLD}|00#0"]
    newer, _, older = (int(request.tags["dagster/priority"]) for request in here.requests)
    assert older < newer < 0
    here.ran(f"{NEW}|00", dg.DagsterRunStatus.STARTED)
    assert here.tick()[0] == [f"{NEW}|01#0", f"{OLD}|00#0"]
    here.allow(Discovery(first="oldest"))
    assert here.tick()[0] == [f"{OLD}|00#0", f"{OLD}|01#0", f"{NEW}|01#0"]


def test_when_everything_fails_nothing_more_is_requested(
    world: Callable[[Discovery], World],
) -> None:
    here = world(Discovery(attempts=1, at_most=2))
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, NEW)
    publish_paths(here.root, OLD)
    for key in here.tick()[0]:
        here.ran(key.partition("#")[0], dg.DagsterRunStatus.FAILURE)
    keys, message = here.tick()
    assert keys == []
    assert "nothing else is requested" in message
    # One is made by hand; its failures before that no longer count.
    here.ran(f"{NEW}|00", dg.DagsterRunStatus.SUCCESS, SEGMENT_ASSETS)
    assert here.tick()[0] == [f"{OLD}|00#0", f"{OLD}|01#0"]


def test_a_segment_that_was_given_up_is_due_again_later(
    world: Callable[[Discovery], World],
) -> None:
    here = world(Discovery(attempts=1, at_most=1, interval_s=100, longest_back_off_s=300))
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD, [100])
    here.tick()
    for wait in (100, 200, 300, 300):
        here.ran(f"{OLD}|00", dg.DagsterRunStatus.FAILURE)
        here.clock = time.time() + wait - 10
        assert here.tick()[0] == []
        here.clock += 20
        assert len(here.tick()[0]) == 1


def test_lost_workers_use_up_one_attempt_between_them(
    world: Callable[[Discovery], World],
) -> None:
    here = world(Discovery(attempts=2))
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD, [100])
    here.tick()
    first = here.ran(f"{OLD}|00", dg.DagsterRunStatus.FAILURE)
    (record,) = here.instance.get_run_records()
    assert record.dagster_run.run_id.startswith(first)
    root = {"dagster/root_run_id": record.dagster_run.run_id}
    last = here.ran(f"{OLD}|00", dg.DagsterRunStatus.FAILURE, tags=root)
    assert here.tick()[0] == [f"{OLD}|00#{last}"]
    here.ran(f"{OLD}|00", dg.DagsterRunStatus.FAILURE)
    assert here.tick()[0] == []


def test_what_a_person_canceled_is_left_to_them(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD, [100])
    here.tick()
    here.ran(f"{OLD}|00", dg.DagsterRunStatus.CANCELED)
    keys, message = here.tick()
    assert keys == []
    assert f"canceled; materialize them yourself: {OLD}|00" in message
    failed = here.ran(f"{OLD}|00", dg.DagsterRunStatus.FAILURE)
    assert here.tick()[0] == [f"{OLD}|00#{failed}"]


def test_another_crawl_source_is_read_at_once(
    world: Callable[[Discovery], World], serve_folder: Callable[[Path], FolderServer]
) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD, [100])
    here.tick()
    other = here.root / "other"
    other.mkdir()
    list_crawls(other, NEW)
    publish_paths(other, NEW, [100])
    url = serve_folder(other).url
    here.source = here.source.model_copy(
        update={"collinfo_url": f"{url}/collinfo.json", "data_url": url}
    )
    here.allow(Discovery())
    assert here.tick()[0] == [f"{NEW}|00#0"]


def test_further_subsets_are_requested(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery())
    list_crawls(here.root, OLD)
    publish_paths(here.root, OLD, [100])
    here.defs = build_defs(
        Settings(crawl_source=here.source, subsets={"laion5b-en": load_recipe("laion5b-en")})
    )
    here.tick()
    asked = [key.path[-1] for key in here.requests[0].asset_selection or []]
    assert asked == segment_assets(["laion5b-en"])


def test_a_tick_needs_no_more_queries_when_more_is_known(
    world: Callable[[Discovery], World],
) -> None:
    """docs/scheduling.md has the times with 10,000 partitions."""
    here = world(Discovery(at_most=10))
    here.source = here.source.model_copy(update={"segments_per_crawl": 100})
    here.allow(Discovery(at_most=10))
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, NEW, range(100, 200))
    publish_paths(here.root, OLD, range(100, 200))
    here.tick()
    counted: list[int] = []
    listen(Engine, "before_cursor_execute", lambda *_: counted.append(1))

    def queries() -> int:
        counted.clear()
        assert len(here.tick()[0]) == 10
        return len(counted)

    before = queries()
    for number in range(40):
        key = f"{NEW}|{number:02d}"
        here.ran(key, dg.DagsterRunStatus.SUCCESS, [LAST_ASSET] if number % 2 else [])
    assert queries() == before


def test_the_policy_bounds_what_is_requested(world: Callable[[Discovery], World]) -> None:
    here = world(Discovery(newest=1, segments=1))
    list_crawls(here.root, NEW, OLD)
    publish_paths(here.root, NEW)
    publish_paths(here.root, OLD)
    assert here.tick()[0] == [f"{NEW}|00#0"]


def test_the_pure_differences() -> None:
    listed = ["CC-MAIN-2000-10", "CC-MAIN-2000-05", "CC-MAIN-1999-50"]
    assert wanted_crawls(listed, Discovery()) == listed
    assert wanted_crawls(listed, Discovery(first="oldest")) == sorted(listed)
    assert wanted_crawls(listed, Discovery(newest=2)) == ["CC-MAIN-2000-10", "CC-MAIN-2000-05"]
    assert wanted_crawls(listed, Discovery(only=("CC-MAIN-1999-50",))) == ["CC-MAIN-1999-50"]
    keys = wanted_segments(OLD, 3, Discovery(segments=2))
    assert [key.segment for key in keys] == ["00", "01"]
    few = wanted_segments(OLD, 100, Discovery(fraction=0.05))
    assert len(few) == 5
    assert few == wanted_segments(OLD, 100, Discovery(fraction=0.05)) == sorted(few)
    assert set(few) < set(wanted_segments(OLD, 100, Discovery(fraction=0.06)))
    assert {key.segment for key in few} != {
        key.segment for key in wanted_segments(NEW, 100, Discovery(fraction=0.05))
    }
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
