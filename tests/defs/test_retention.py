"""What pruning deletes from Dagster's storage, and what it never deletes: real runs, on SQLite and
on Postgres."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.runs.schema import RunsTable

from deploy.cluster_demo import postgres
from laion_assets.defs.jobs import prune_job
from laion_assets.defs.retention import Pruned, prune
from laion_assets.settings import Retention

PARTS = dg.StaticPartitionsDefinition(["0", "1"])


@dg.asset(partitions_def=PARTS, check_specs=[dg.AssetCheckSpec("sound", asset="thing")])
def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    print("printed output")
    for line in range(30):
        context.log.info(f"line {line}")
    if context.has_tag("doomed"):
        raise RuntimeError("as asked")
    return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])


@dg.asset(partitions_def=PARTS, deps=[thing])
def made_of_it() -> None:
    pass


DEFS = dg.Definitions(assets=[thing, made_of_it], executor=dg.in_process_executor)
JOB = DEFS.resolve_implicit_global_asset_job_def()


def run(instance: dg.DagsterInstance, partition: str, **tags: str) -> str:
    done = JOB.execute_in_process(
        instance=instance, partition_key=partition, tags=tags, raise_on_error=False
    )
    return done.run_id


def age(instance: dg.DagsterInstance, *run_ids: str) -> None:
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(
            sa.update(RunsTable)
            .where(RunsTable.c.run_id.in_(run_ids))
            .values(create_timestamp=datetime(2020, 1, 1), update_timestamp=datetime(2020, 1, 1))
        )


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    if request.param == "sqlite":
        yield request.getfixturevalue("instance")
        return
    with postgres.running() as url:
        of_postgres = {"storage": {"postgres": {"postgres_url": url}}}
        quiet = {"telemetry": {"enabled": False}}
        with dg.DagsterInstance.local_temp(str(tmp_path), of_postgres | quiet) as instance:
            yield instance


def files_of(instance: dg.DagsterInstance, run_id: str) -> int:
    """Bytes of the files that are a run's alone: on SQLite its events, elsewhere its output."""
    root = Path(instance.storage_directory())
    return sum(path.stat().st_size for path in root.rglob("*") if run_id in str(path))


def history(instance: dg.DagsterInstance) -> list[tuple[int, str | None]]:
    found = instance.fetch_materializations(dg.AssetKey("thing"), limit=100)
    return [(record.storage_id, record.partition_key) for record in found.records]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_logs_are_deleted_and_results_stay(storage: dg.DagsterInstance) -> None:
    instance = storage
    first, second, other = (run(instance, part) for part in ("0", "0", "1"))
    failed = run(instance, "0", doomed="yes")
    young = run(instance, "1", doomed="yes")
    age(instance, first, second, other, failed)
    made, size = history(instance), files_of(instance, first)
    assert len(made) == 3

    planned = prune(instance, Retention(), dry_run=True)
    assert planned == Pruned(logs=3, runs=1, superseded=0)
    assert len(instance.all_logs(first)) > 40
    job = prune_job(Retention())
    assert job.execute_in_process(instance=instance).success
    assert history(instance) == made
    assert prune(instance, Retention()) == Pruned()

    assert not instance.has_run(failed)
    assert len(instance.all_logs(young)) > 30
    kept = {entry.dagster_event_type for entry in instance.all_logs(first)}
    assert kept >= {
        dg.DagsterEventType.RUN_START,
        dg.DagsterEventType.RUN_SUCCESS,
        dg.DagsterEventType.STEP_SUCCESS,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    }
    assert len(instance.all_logs(first)) < 20
    assert files_of(instance, first) < size

    superseded = prune(instance, Retention(superseded_days=30))
    assert superseded == Pruned(superseded=1)
    assert not instance.has_run(first)
    assert instance.get_materialized_partitions(dg.AssetKey("thing")) == {"0", "1"}
    assert history(instance) == made[:2]
