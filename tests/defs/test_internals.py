"""Uses the private parts of Dagster that `defs/internals.py` wraps: upgrades break here first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from laion_assets.defs.internals import (
    DATA_VERSION_TAG,
    AssetJob,
    SqlEventLog,
    configured_instance,
    skip_started_ticks,
    stale_causes,
)
from laion_assets.defs.partitions import crawls, partition_key, segment_partitions
from laion_assets.layout import SegmentKey

ROOT = Path(__file__).parents[2]
KEY = SegmentKey("CC-MAIN-2000-05", "01")


@dg.asset(partitions_def=segment_partitions(2))
def first() -> None:
    pass


@dg.asset(partitions_def=segment_partitions(2), deps=[first])
def second() -> None:
    pass


JOB = dg.define_asset_job("both", selection=[first, second])
DEFS = dg.Definitions(assets=[first, second], jobs=[JOB], executor=dg.in_process_executor)


def run(instance: dg.DagsterInstance, *assets: str) -> str:
    result = DEFS.resolve_job_def("both").execute_in_process(
        instance=instance,
        partition_key=partition_key(KEY),
        asset_selection=[dg.AssetKey(name) for name in assets],
    )
    return result.run_id


def test_an_asset_job_has_the_type_that_is_not_exported() -> None:
    assert isinstance(JOB, AssetJob)


def test_an_observations_tag_is_its_data_version(instance: dg.DagsterInstance) -> None:
    instance.report_runless_asset_event(
        dg.AssetObservation("outside", tags={DATA_VERSION_TAG: "of-today"})
    )
    [record] = instance.fetch_observations(dg.AssetKey("outside"), limit=1).records
    assert record.asset_observation is not None
    assert record.asset_observation.data_version == "of-today"


def test_stale_partitions_have_causes(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions(crawls.name or "", [KEY.crawl])
    assert stale_causes(instance, DEFS)("second", KEY) is None
    run(instance, "first", "second")
    assert stale_causes(instance, DEFS)("second", KEY) == []
    run(instance, "first")
    [cause] = stale_causes(instance, DEFS)("second", KEY) or []
    assert "dependency" in cause


def test_no_instance_is_configured_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert configured_instance() is None


def test_the_instance_of_the_home_is_found(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    found = configured_instance()
    assert found is not None
    assert found.root_directory == instance.root_directory


def test_a_tick_that_a_killed_daemon_left_is_closed(instance: dg.DagsterInstance) -> None:
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.remote_origin import (
        InProcessCodeLocationOrigin,
        RemoteInstigatorOrigin,
        RemoteRepositoryOrigin,
    )
    from dagster._core.scheduler.instigation import (
        InstigatorState,
        InstigatorStatus,
        SensorInstigatorData,
        TickData,
        TickStatus,
    )
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="laion_assets"))
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "repository"), "idle")
    state = InstigatorState(
        origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData()
    )
    instance.add_instigator_state(state)
    started = instance.create_tick(
        TickData(
            instigator_origin_id=state.instigator_origin_id,
            instigator_name="idle",
            instigator_type=InstigatorType.SENSOR,
            status=TickStatus.STARTED,
            timestamp=1.0,
            selector_id=state.selector_id,
        )
    )
    skip_started_ticks(instance, "interrupted")
    [tick] = instance.get_ticks(state.instigator_origin_id, state.selector_id)
    assert tick.tick_id == started.tick_id
    assert (tick.status, tick.skip_reason) == (TickStatus.SKIPPED, "interrupted")


def test_the_event_log_can_be_queried_in_sql(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions(crawls.name or "", [KEY.crawl])
    run_id = run(instance, "first")
    log = SqlEventLog.of(instance)
    assert log is not None
    columns = log.events.c
    materializations = sa.select(columns.run_id, columns.asset_key, columns.partition).where(
        columns.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION.value
    )
    with log.connect() as connection:
        [row] = connection.execute(materializations)
    assert (row.run_id, row.asset_key, row.partition) == (run_id, '["first"]', str(KEY))
    with log.connect_to_run(run_id) as connection:
        types = {row.dagster_event_type for row in connection.execute(sa.select(columns))}
    assert dg.DagsterEventType.STEP_OUTPUT.value in types
    assert {"id", "run_id", "asset_key", "check_name", "partition"} <= set(log.checks.c.keys())
    path = log.file_of_run(run_id)
    assert path is not None
    assert path.exists()


def _is_private(part: str) -> bool:
    return part.startswith("_")


def test_no_other_module_imports_private_parts_of_dagster() -> None:
    for folder in ("laion_assets", "resources", "sensors"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == ROOT / "laion_assets" / "defs" / "internals.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                for name in names:
                    package, *parts = name.split(".")
                    if package.startswith("dagster"):
                        assert not any(map(_is_private, parts)), f"{path} imports {name}"


def test_the_adapters_are_light_to_import() -> None:
    code = (
        "import sys, dagster, laion_assets.layout; before = set(sys.modules);"
        "import laion_assets.defs.internals;"
        "print([m for m in set(sys.modules) - before if not m.startswith('laion_assets')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
