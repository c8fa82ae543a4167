"""`make cluster-demo`: eight segments on three machines, with a failing object store.

One machine is lost on the way. Then the dataset is compared with that of an undisturbed run; the
exit code is 0 if they are the same. The machines are Ray nodes on this host, each with its own
processes, loopback address and cache. Dagster's storage is Postgres, and the lake is an
S3-compatible store. `deploy/ray/dagster.yaml` is the instance's configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Final

import dagster as dg

from benchmarks.table import markdown
from deploy.cluster_demo import nodes, postgres
from deploy.cluster_demo.compare import compare
from deploy.cluster_demo.crawl import build_in_segments
from deploy.cluster_demo.nodes import MARK, Cluster, ClusterError
from deploy.cluster_demo.store import COUNTS
from laion_assets.defs import pools
from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import PARTITION_TAG, UNFINISHED
from laion_assets.demo.driver import needs
from laion_assets.lake import Lake, open_lake
from laion_assets.layout import SEGMENT_ASSETS
from laion_assets.sample_crawl.server import SampleServer
from laion_assets.settings import CONFIG_VARIABLE, Settings, load_settings

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
LOSE_AT: Final = "image_shards"
"""Asset during which the machine is lost."""
_BUCKET: Final = "lake"
_PATIENCE_S: Final = 1800.0


@dataclass
class Story:
    """Events of the demo, for the tables at the end."""

    node_of: dict[str, str] = field(default_factory=dict)
    lost_run: str = ""
    lost_at: float = 0.0
    noticed_at: float = 0.0


def _mark(work: Path, machine: object) -> str:
    return f"{work}#{machine}"


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=3, help="number of Ray nodes (default: 3)")
    parser.add_argument(
        "--failing", type=float, default=0.05, help="share of the store's requests that fail"
    )
    parser.add_argument(
        "--again", action="store_true", help="reuse the last undisturbed run, if there is one"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".demo" / "cluster", help="folder of the demo"
    )
    args = parser.parse_args()
    # Processes that an interrupted demo in the same folder left running; never those of another.
    for machine in ("head", "control", *range(1, args.machines + 1)):
        nodes.kill(_mark(args.work.absolute(), machine))
    args.work.mkdir(parents=True, exist_ok=True)
    kept = {"undisturbed"} if args.again else set()
    for path in args.work.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
    try:
        faults = demo(args.work.absolute(), args.machines, args.failing)
    except (ClusterError, postgres.PostgresError) as error:
        print(f"cluster-demo: {error}", file=sys.stderr)
        return 1
    for fault in faults:
        print(f"WRONG: {fault}")
    print("not the same dataset" if faults else "the same dataset, nothing doubled, nothing lost")
    return 1 if faults else 0


def demo(work: Path, machines: int, failing: float) -> list[str]:
    """Run the demo in the folder ``work``; return what is wrong with the result."""
    with ExitStack() as stack:
        counts = build_in_segments(work / "crawl")
        crawl = stack.enter_context(SampleServer(work / "crawl"))
        expected = sum(counts.values())

        def settings_file(machine: str, lake: str, endpoint: str = "") -> Path:
            text = Template((HERE / "settings.toml").read_text()).substitute(
                lake=lake,
                cache=work / "machines" / machine,
                endpoint=endpoint,
                crawl=crawl.url,
                images=f"127.0.0.1:{crawl.port}",
            )
            path = work / f"{machine}.toml"
            path.write_text(text)
            return path

        undisturbed = settings_file("undisturbed", str(work / "undisturbed"))
        if not (work / "undisturbed" / "dataset_report").exists():
            say(f"an undisturbed run of {expected} segments, for comparison")
            started = time.monotonic()
            _undisturbed(undisturbed, work)
            say(f"done in {time.monotonic() - started:.0f} s")

        endpoint = stack.enter_context(_store(failing))
        database = stack.enter_context(postgres.running(max_connections=200))
        say(f"an object store that fails {failing:.0%} of the requests, and Postgres, are up")
        lake = f"s3://{_BUCKET}/laion"
        names = ("head", "control", *map(str, range(1, machines + 1)))
        environment = {
            _mark(work, name): {
                CONFIG_VARIABLE: str(settings_file(name, lake, endpoint)),
                "DAGSTER_POSTGRES_URL": database,
                "DAGSTER_HOME": str(work / "home"),
                "PYTHONPATH": str(ROOT),
                # Ray starts a run by the command `dagster`.
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "AWS_ACCESS_KEY_ID": "anybody",
                "AWS_SECRET_ACCESS_KEY": "anything",
            }
            for name in names
        }
        started = time.monotonic()
        cluster = stack.enter_context(nodes.running(str(work), machines, environment, work))
        say(f"Ray is up in {time.monotonic() - started:.0f} s: {machines} machines")
        control = _mark(work, "control")
        os.environ.update(environment[control], RAY_JOBS_ADDRESS=cluster.jobs_address)
        settings = load_settings()
        started = time.monotonic()
        with _instance(work / "home", machines) as instance, _daemon(control, work):
            story = _watch(instance, cluster, settings, expected, machines)
            say(f"everything is made {time.monotonic() - started:.0f} s after the daemon's start")
            remote = open_lake(settings.lake)
            left = open_lake(load_settings(undisturbed).lake)
            rows, faults = compare(remote, left)
            faults += _unnamed(remote)
            faults += _restored(instance, database, work)
            _print_summary(instance, story, rows, endpoint, expected)
            return faults


def _undisturbed(config: Path, work: Path) -> None:
    with (work / "undisturbed.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cluster_demo.undisturbed", config],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise ClusterError(f"the undisturbed run failed: see {work}/undisturbed.log")


@contextmanager
def _store(failing: float) -> Iterator[str]:
    command = [sys.executable, "-m", "deploy.cluster_demo.store", "--bucket", _BUCKET]
    command += ["--failing", str(failing)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            port = server.stdout.readline().strip()
            if not port:
                raise ClusterError("the object store did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@contextmanager
def _instance(home: Path, machines: int) -> Iterator[dg.DagsterInstance]:
    home.mkdir()
    shutil.copyfile(HERE.parent / "ray" / "dagster.yaml", home / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        # All pools, before any run: two runs that first used a pool at once have been seen to fail
        # on Postgres, since each added its row.
        for pool in _pools():
            limit = 1 if pool in (pools.LEDGER, pools.CLUSTERS) else machines
            instance.event_log_storage.set_concurrency_slots(pool, limit)
        yield instance


def _pools() -> set[str]:
    assets = build_defs(load_settings()).get_repository_def().assets_defs_by_key.values()
    return {pool for asset in assets if asset.is_executable for pool in asset.node_def.pools}


@contextmanager
def _daemon(mark: str, work: Path) -> Iterator[None]:
    with (work / "daemon.log").open("wb") as log:
        subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "-w", ROOT / "workspace.yaml"],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, MARK: mark},
        )
    try:
        yield
    finally:
        nodes.kill(mark)


def _watch(
    instance: dg.DagsterInstance,
    cluster: Cluster,
    settings: Settings,
    expected: int,
    machines: int,
) -> Story:
    """Wait until everything is made, and lose a machine on the way."""
    story, reported = Story(), set[str]()
    definitions = build_defs(settings)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        story.node_of.update(cluster.runs())
        if not story.lost_run:
            _lose(instance, cluster, story, machines)
        runs = instance.get_runs(limit=500)
        for run in runs:
            if run.run_id == story.lost_run and run.is_finished and not story.noticed_at:
                story.noticed_at = time.monotonic()
                say(f"the loss was noticed after {story.noticed_at - story.lost_at:.0f} s")
            if run.is_finished and run.run_id not in reported:
                reported.add(run.run_id)
                what = run.tags.get(PARTITION_TAG, run.job_name)
                node = story.node_of.get(run.run_id, "?").rpartition("#")[2]
                say(f"{what} on machine {node}: {run.status.value.lower()}")
        made = instance.get_materialized_partitions(dg.AssetKey(SEGMENT_ASSETS[-1]))
        if len(made) == expected and not any(run.status in UNFINISHED for run in runs):
            lacks = needs(settings, instance, definitions)
            if not lacks:
                if not story.lost_run:
                    raise ClusterError(f"no machine was found making {LOSE_AT}, so none was lost")
                return story
        time.sleep(1.0)
    raise ClusterError(f"not everything was made within {_PATIENCE_S:.0f} s: see the logs in .demo")


def _lose(instance: dg.DagsterInstance, cluster: Cluster, story: Story, machines: int) -> None:
    """Kill a machine that makes images while all others work, once."""
    busy = cluster.runs()
    if len(set(busy.values())) < machines:
        return
    for run_id, node in busy.items():
        steps = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
        running = [entry.dagster_event.step_key for entry in steps if entry.dagster_event]
        if running and running[-1] == LOSE_AT:
            count = nodes.kill(node)
            story.lost_run, story.lost_at = run_id, time.monotonic()
            run = instance.get_run_by_id(run_id)
            assert run
            machine, partition = node.rpartition("#")[2], run.tags[PARTITION_TAG]
            say(f"machine {machine} is lost, {count} processes, making {LOSE_AT} of {partition}")
            return


def _restored(instance: dg.DagsterInstance, database: str, work: Path) -> list[str]:
    """Back up Dagster's database, restore it elsewhere, and compare what it records."""
    dump, binary = work / "dagster.dump", postgres.binaries()
    subprocess.run([binary / "pg_dump", "-Fc", "-f", dump, database], check=True)
    with postgres.running() as elsewhere:
        subprocess.run([binary / "pg_restore", "-d", elsewhere, dump], check=True)
        home = work / "restored"
        home.mkdir()
        (home / "dagster.yaml").write_text(
            f"storage:\n  postgres:\n    postgres_url: {elsewhere}\ntelemetry:\n  enabled: false\n"
        )
        with dg.DagsterInstance.from_config(str(home)) as restored:
            faults = [
                f"the restored database differs in the partitions of {asset}"
                for asset in SEGMENT_ASSETS
                if restored.get_materialized_partitions(dg.AssetKey(asset))
                != instance.get_materialized_partitions(dg.AssetKey(asset))
            ]
            if restored.get_runs_count() != instance.get_runs_count():
                faults.append("the restored database differs in its number of runs")
    say(f"a backup of Dagster's database ({dump.stat().st_size / 1e6:.1f} MB) was restored")
    return faults


def _unnamed(lake: Lake) -> list[str]:
    """Partitions whose objects are not those that their pointers name."""
    faults = []
    for asset in SEGMENT_ASSETS:
        for key in lake.segments(asset):
            manifest = lake.manifest(asset, key)
            folder = lake.folder(asset, key)
            lacking = [of["name"] for of in manifest.files if not (folder / of["name"]).exists()]
            if lacking:
                faults.append(f"{asset} of {key} lacks {', '.join(lacking)}")
    return faults


def _print_summary(
    instance: dg.DagsterInstance,
    story: Story,
    rows: list[list[str]],
    endpoint: str,
    expected: int,
) -> None:
    """Print the runs, the comparison, and how often the store failed."""
    by_partition: dict[str, list[str]] = {}
    for run in reversed(instance.get_runs(limit=500)):
        node = story.node_of.get(run.run_id, "?").rpartition("#")[2]
        lost = ", lost" if run.run_id == story.lost_run else ""
        selected = ", ".join(sorted(key.path[-1] for key in run.asset_selection or ()))
        # A bar would end the cell of the table.
        what = run.tags.get(PARTITION_TAG, selected).replace("|", " ")
        by_partition.setdefault(what, []).append(f"{run.status.value.lower()} ({node}{lost})")
    print()
    table = [[what, "; ".join(runs)] for what, runs in sorted(by_partition.items())]
    print(markdown(["partition or assets", "its runs (machine)"], table))
    print()
    columns = ["asset", "partitions", "rows", "doubled", "digest", "undisturbed"]
    print(markdown(columns, rows))
    print()
    with urllib.request.urlopen(f"{endpoint}{COUNTS}") as answer:
        counts = json.load(answer)
    asked = sum(counts.values())
    failed = asked - counts.get("answered", 0)
    print(f"{expected} segments; the store failed {failed} of {asked} requests: {counts}")
    print(f"the lost machine was noticed after {story.noticed_at - story.lost_at:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
