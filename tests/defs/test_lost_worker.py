"""A killed run worker: Dagster's own daemon, with the deployment's dagster.yaml, retries the run,
which does not redo the parts that were finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.settings import DAGSTER_CONFIG
from tests.processes import until

ROOT = Path(__file__).parents[2]
KEY = SegmentKey("CC-MAIN-2021-04", "00")
GRAPH = """
import os, time
from pathlib import Path
import dagster as dg
from laion_assets.defs.publishing import publishing
from laion_assets.defs.partitions import crawls, partition_key, segment_partitions
from laion_assets.layout import SegmentKey
from resources.lake import LakeResource

HERE = Path(__file__).parent
KEY = SegmentKey("CC-MAIN-2021-04", "00")

@dg.asset(partitions_def=segment_partitions(2), code_version="1", pool="download")
def image_shards(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    with publishing(context, lake.open()) as publication:
        for number in range(6):
            part = publication.out / f"{number:05d}.tar"
            if not part.exists():
                with (HERE / "made").open("a") as made:
                    made.write(f"{number} {os.getpid()}\\n")
                while number == 3 and not (HERE / "go").exists():
                    time.sleep(0.05)
                part.write_bytes(b"part")
    return publication.result()

job = dg.define_asset_job("segment", selection=["image_shards"])

@dg.sensor(job=job, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def once():
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key="once", partition_key=partition_key(KEY))],
        dynamic_partitions_requests=[crawls.build_add_request([KEY.crawl])],
    )

defs = dg.Definitions(
    assets=[image_shards], jobs=[job], sensors=[once], executor=dg.in_process_executor,
    resources={"lake": LakeResource(root=str(HERE / "lake"))},
)
"""


@pytest.fixture
def daemon(tmp_path: Path, instance: dg.DagsterInstance) -> Iterator[dg.DagsterInstance]:
    home = Path(instance.root_directory)
    config = yaml.safe_load(DAGSTER_CONFIG.read_text())
    config["run_monitoring"] |= {"poll_interval_seconds": 1, "free_slots_after_run_end_seconds": 1}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "graph.py").write_text(GRAPH)
    with (tmp_path / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("dagster-daemon"), "run", "-f", "graph.py"],
            cwd=tmp_path,
            env={**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield dg.DagsterInstance.from_config(str(home))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_run_of_a_killed_worker_is_retried_and_continues(
    tmp_path: Path, daemon: dg.DagsterInstance
) -> None:
    made = tmp_path / "made"

    def lines() -> list[list[str]]:
        return [line.split() for line in made.read_text().splitlines()] if made.exists() else []

    until(lambda: len(lines()) == 4, "the third part", every_s=0.1)
    worker = int(lines()[-1][1])
    os.kill(worker, signal.SIGKILL)
    (tmp_path / "go").touch()
    until(
        lambda: any(run.status == dg.DagsterRunStatus.SUCCESS for run in daemon.get_runs()),
        "the second run's success",
        every_s=0.1,
    )
    second, first = daemon.get_runs()
    assert (first.status, second.parent_run_id) == (dg.DagsterRunStatus.FAILURE, first.run_id)
    # Only the part in flight was made twice.
    assert [number for number, _ in lines()] == ["0", "1", "2", "3", "3", "4", "5"]
    assert {int(pid) for _, pid in lines()[:4]} == {worker}
    assert len(daemon.fetch_materializations(dg.AssetKey("image_shards"), limit=9).records) == 1
    lake = LocalLake.at(tmp_path / "lake")
    assert len(lake.manifest("image_shards", KEY).files) == 6
    # The lost worker's pool slots are free again.
    assert daemon.event_log_storage.get_concurrency_info("download").active_slot_count == 0
