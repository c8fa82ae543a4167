"""A changed list makes stale exactly the partitions that it concerns; the runs are real."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.loader import LoadingContextForTest

from laion_assets import schemas
from laion_assets.defs.assets import lists as outside
from laion_assets.defs.jobs import lists_job
from laion_assets.defs.partitions import crawls, partition_key, segment_partitions
from laion_assets.defs.publishing import key_of, publishing
from laion_assets.funnel import StageCounts
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.pairs import take_out as take_out_module
from laion_assets.pairs.extract import PairWriter
from laion_assets.pairs.take_out import take_out
from laion_assets.removals.active import read_lists
from laion_assets.removals.options import RemovalOptions
from resources.lake import LakeResource
from sensors.lists import REMAKE_TAG, lists_sensor

CRAWL = "CC-MAIN-2021-04"
KEYS = [SegmentKey(CRAWL, f"{i:02d}") for i in range(3)]


def url_of(key: SegmentKey) -> str:
    return f"http://h{key.segment}.test/1.jpg"


@dataclass
class Graph:
    """The lists, and one asset made of them: a table of one pair for each segment."""

    root: Path
    instance: dg.DagsterInstance
    defs: dg.Definitions
    jobs: tuple[Any, Any]
    options: RemovalOptions = field(default_factory=RemovalOptions)

    @property
    def lake(self) -> LocalLake:
        return LocalLake.at(self.root)

    def write(self, name: str, text: str) -> None:
        (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / name / "mine.txt").write_text(text)

    def make(self, *keys: SegmentKey) -> None:
        for key in keys:
            assert self.run("make", key).success

    def run(
        self, job: str, key: SegmentKey | None = None, tags: dict[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=partition_key(key) if key else None,
            tags=tags,
        )

    def tick(self, cursor: str | None) -> SensorExecutionData:
        """Evaluate the sensor as the daemon does."""
        defs = dg.Definitions.merge(
            self.defs, dg.Definitions(sensors=[lists_sensor(*self.jobs, self.options)])
        )
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            repository_def=defs.get_repository_def(),
            resources={"lake": LakeResource(root=str(self.root))},
            cursor=cursor,
        )
        return defs.get_sensor_def("lists_sensor").evaluate_tick(context)

    def follow(self, cursor: str | None) -> str:
        """Tick, and run what is requested, until the cursor changes; return the cursor."""
        for request in self.tick(cursor).run_requests or []:
            assert request.job_name == "observe_lists"
            assert self.run("observe_lists", tags=dict(request.tags)).success
        now = self.tick(cursor).cursor
        assert now
        return now

    def stale(self) -> list[SegmentKey]:
        resolver = CachingStaleStatusResolver(
            self.instance, self.defs.resolve_asset_graph(), LoadingContextForTest(self.instance)
        )
        status = {
            key: resolver.get_status(dg.AssetKey("pair_parquet"), str(partition_key(key)))
            for key in KEYS
        }
        assert StaleStatus.MISSING not in status.values()
        return [key for key in KEYS if status[key] == StaleStatus.STALE]


@pytest.fixture
def graph(tmp_path: Path, instance: dg.DagsterInstance) -> Graph:
    segments = segment_partitions(3)

    @dg.asset(partitions_def=segments, deps=["removals", "blocklists"])
    def pair_parquet(context: dg.AssetExecutionContext, lake: LakeResource) -> None:
        store = lake.open()
        outside.begin_observing(context, store)
        lists = read_lists(store.root)
        url = url_of(key_of(context))
        values = {"uid": [schemas.uid_of(url, "text")], "url": [url], "language_score": [1.0]}
        arrays = [pa.array(values.get(field.name, ["text"]), field.type) for field in schemas.PAIRS]
        with publishing(context, store) as made:
            with PairWriter(made.out / "part-00000.parquet") as writer:
                writer.write(pa.table(arrays, schema=schemas.PAIRS))
                counts = StageCounts("pairs", kept=1, n_in=1)
                writer.note_counts([StageCounts("wat"), counts])
            taken = take_out(made.out, lists)
        outside.note_taken_out(made, lists, taken, returns=True)

    jobs = (lists_job(), dg.define_asset_job("segment", selection=["pair_parquet"]))
    defs = dg.Definitions(
        assets=[*outside.build(segments), pair_parquet],
        jobs=[*jobs, dg.define_asset_job("make", selection=["pair_parquet"])],
        resources={"lake": LakeResource(root=str(tmp_path / "lake"))},
        executor=dg.in_process_executor,
    )
    instance.add_dynamic_partitions(crawls.name or "", [CRAWL])
    (tmp_path / "lake").mkdir()
    return Graph(tmp_path / "lake", instance, defs, jobs)


def test_a_list_that_returns_to_an_earlier_version_is_looked_for_again(graph: Graph) -> None:
    first = graph.tick(None)
    graph.make(*KEYS)
    cursor = first.cursor
    for text, stale in (
        (url_of(KEYS[1]), [KEYS[1]]),
        ("", [KEYS[1]]),
        (url_of(KEYS[1]), [KEYS[1]]),
    ):
        graph.write("removals", f"{text}\n")
        cursor = graph.follow(cursor)
        assert graph.stale() == stale
        graph.make(KEYS[1])
        assert graph.stale() == []


def test_a_changed_list_makes_stale_what_it_concerns_and_nothing_else(graph: Graph) -> None:
    first = graph.tick(None)
    assert not first.run_requests
    graph.make(*KEYS)
    assert graph.stale() == []

    graph.write("removals", f"host:elsewhere.test\nurl:{url_of(KEYS[1])}\n")
    cursor = graph.follow(first.cursor)
    assert graph.stale() == [KEYS[1]]
    assert graph.tick(cursor).skip_message == "no list has changed"
    graph.make(KEYS[1])
    assert graph.stale() == []

    graph.write("removals", f"url:{url_of(KEYS[1])}\nhost:nowhere.test\n")
    graph.write("blocklists", "host:H02.test\n")
    cursor = graph.follow(cursor)
    assert graph.stale() == [KEYS[2]]
    graph.make(KEYS[2])

    graph.write("removals", "host:nowhere.test\n")  # what was taken out may come back
    cursor = graph.follow(cursor)
    assert graph.stale() == [KEYS[1]]
    graph.make(KEYS[1])
    assert graph.stale() == []
    assert graph.lake.manifest("pair_parquet", KEYS[1]).files


def test_rebuilds_are_requested_where_they_are_automatic(graph: Graph) -> None:
    graph.make(*KEYS)
    graph.options = RemovalOptions(automatic=True)
    graph.write("removals", f"url:{url_of(KEYS[1])}\n")
    look = graph.tick(None)
    [request] = look.run_requests or []
    assert graph.run("observe_lists", tags=dict(request.tags)).success
    asked = graph.tick(None)
    [request] = asked.run_requests or []
    assert (request.job_name, str(request.partition_key)) == ("segment", str(KEYS[1]))
    assert request.asset_selection == [dg.AssetKey("pair_parquet")]


def test_a_list_that_changes_while_a_partition_is_made_makes_it_stale(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph.make(*KEYS)  # all, because `stale` looks at all

    def change_meanwhile(*args: object) -> object:
        graph.write("removals", f"url:{url_of(KEYS[0])}\n")
        return take_out_module.take_out(*args)  # type: ignore[arg-type]

    monkeypatch.setitem(globals(), "take_out", change_meanwhile)
    graph.make(KEYS[0])
    monkeypatch.undo()
    assert graph.stale() == [KEYS[0]]
    graph.make(KEYS[0])
    assert graph.stale() == []


def test_what_a_run_observes_after_the_look_is_rebuilt_too(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run begins with the old lists and publishes when the look is over."""
    graph.options = RemovalOptions(automatic=True)
    graph.make(*KEYS)
    cursor: list[str] = []

    def look_meanwhile(*args: object) -> object:
        graph.write("removals", f"url:{url_of(KEYS[0])}\n")
        cursor.append(graph.follow(None))
        return take_out_module.take_out(*args)  # type: ignore[arg-type]

    graph.write("removals", "host:elsewhere.test\n")
    monkeypatch.setitem(globals(), "take_out", look_meanwhile)
    graph.make(KEYS[0])
    monkeypatch.undo()
    followed = graph.tick(cursor[0])
    [request] = followed.run_requests or []
    assert str(request.partition_key) == str(KEYS[0])
    assert not graph.tick(followed.cursor).run_requests
    assert graph.run("make", KEYS[0], tags=dict(request.tags)).success
    assert graph.tick(followed.cursor).skip_message == "no list has changed"


def test_a_rebuild_that_fails_is_requested_a_few_times(graph: Graph) -> None:
    graph.options = RemovalOptions(automatic=True)
    graph.make(*KEYS)
    graph.write("removals", f"url:{url_of(KEYS[1])}\n")
    [look] = graph.tick(None).run_requests or []
    assert graph.run("observe_lists", tags=dict(look.tags)).success
    tick = graph.tick(None)
    for attempt in range(1, graph.options.attempts + 1):
        [request] = tick.run_requests or []
        assert str(request.run_key) == f"{request.tags[REMAKE_TAG]}#{attempt}"
        assert not graph.tick(tick.cursor).run_requests  # its run is yet to be seen
        graph.instance.create_run_for_job(
            graph.defs.resolve_job_def("make"),
            tags=dict(request.tags),
            status=dg.DagsterRunStatus.FAILURE,
        )
        tick = graph.tick(tick.cursor)
    assert not tick.run_requests
    assert tick.skip_message == (f"no list has changed; given up after 3 failed runs: {KEYS[1]}")


@pytest.mark.parametrize("cursor", ["{", "[]", '{"remakes": {"a": "b"}}'])
def test_a_cursor_that_cannot_be_read_counts_as_none(graph: Graph, cursor: str) -> None:
    graph.make(*KEYS)
    graph.write("removals", "host:elsewhere.test\n")
    first = graph.follow(None)
    assert graph.tick(cursor).cursor == graph.tick(None).cursor == first


def test_no_run_is_requested_for_what_was_deleted(graph: Graph) -> None:
    graph.options = RemovalOptions(automatic=True)
    graph.make(*KEYS)
    graph.write("removals", f"url:{url_of(KEYS[1])}\n")
    [look] = graph.tick(None).run_requests or []
    assert graph.run("observe_lists", tags=dict(look.tags)).success
    shutil.rmtree(graph.lake.folder("pair_parquet", KEYS[1]))
    for cursor in (None, graph.tick(None).cursor):
        gone = graph.tick(cursor)
        assert not gone.run_requests  # an empty selection would mean all assets
        assert str(KEYS[1]) not in str(gone.cursor)


def test_a_list_that_cannot_be_understood_is_an_error(graph: Graph) -> None:
    graph.write("blocklists", "what is this\n")
    with pytest.raises(dg.Failure, match=r"mine\.txt:1"):
        graph.tick(None)


def test_a_look_that_fails_is_requested_a_few_times(graph: Graph) -> None:
    graph.write("removals", "host:a.test\n")
    for attempt in range(RemovalOptions().attempts):
        result = graph.tick(None)
        [request] = result.run_requests or []
        assert str(request.run_key).endswith(f"#{attempt}")
        graph.instance.create_run_for_job(
            graph.defs.resolve_job_def("observe_lists"),
            tags=dict(request.tags),
            status=dg.DagsterRunStatus.FAILURE,
        )
    assert (graph.tick(None).skip_message or "").startswith("given up after 3 failed runs")
