"""``python -m benchmarks.scale.run``: Dagster with ten thousand partitions of each asset, on SQLite
and on Postgres."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import dagster as dg
import yaml

from benchmarks import table
from benchmarks.measure import tree_bytes
from benchmarks.peer import WORK
from benchmarks.scale.fill import SEGMENTS, crawl_names, fill, write_crawls
from benchmarks.scale.ui import Watch, browser_page
from deploy.cluster_demo import postgres
from laion_assets.defs.build import build_defs
from laion_assets.layout import SEGMENT_ASSETS
from laion_assets.settings import CONFIG_VARIABLE, DAGSTER_CONFIG, load_settings

ROOT: Final = Path(__file__).parent.parent.parent
SHOT: Final = ROOT / "docs" / "images" / "ten-thousand-partitions.png"
TICKS: Final = 4
BACKFILL: Final = 1000
_PATIENCE_S: Final = 420.0
_ASSET: Final = "knn_index"

_LAUNCH: Final = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--crawls", default="100", help="numbers of crawls, comma-separated; each has 100 segments"
    )
    parser.add_argument("--storages", default="sqlite,postgres", help="storages to measure")
    parser.add_argument(
        "--keep", action="store_true", help="keep earlier results, if there are any"
    )
    args = parser.parse_args()
    results = []
    sizes = [int(size) for size in args.crawls.split(",")]
    for size in sizes:
        for storage in args.storages.split(","):
            saved = WORK / "scale" / f"{storage}-{size}.json"
            if not (args.keep and saved.exists()):
                found = measured(storage, size, backfill=size == max(sizes))
                saved.parent.mkdir(parents=True, exist_ok=True)
                saved.write_text(json.dumps(found))
            results.append(json.loads(saved.read_text()))
    names = list(dict.fromkeys(name for result in results for name in result["figures"]))
    heads = [f"{of['crawls'] * SEGMENTS:,} on {of['storage']}" for of in results]
    rows = [[name, *(of["figures"].get(name, "") for of in results)] for name in names]
    table.publish("scale", table.markdown(["partitions of each asset", *heads], rows))


def measured(storage: str, crawls: int, *, backfill: bool) -> dict[str, Any]:
    folder = WORK / "scale" / f"{storage}-{crawls}"
    shutil.rmtree(folder, ignore_errors=True)
    write_crawls(folder / "crawls", crawls)
    figures: dict[str, str] = {}
    with ExitStack() as stack:
        environment = os.environ | {
            "DAGSTER_HOME": str(folder / "home"),
            CONFIG_VARIABLE: str(_settings(folder)),
            "PYTHONPATH": str(ROOT),
        }
        url = stack.enter_context(postgres.running()) if storage == "postgres" else None
        _home(folder / "home", url)
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(folder / "home")))
        definitions = build_defs(load_settings(Path(environment[CONFIG_VARIABLE])))
        started = time.monotonic()
        n = fill(instance, definitions, crawls)
        print(f"{storage}: {n:,} events in {time.monotonic() - started:.0f} s", file=sys.stderr)
        figures["overhead per asset partition"] = _overhead(environment, crawls)
        with _dagster("daemon", environment, folder, []) as daemon:
            figures |= _ticks(instance)
            with _webserver(environment, folder) as (server, address):
                figures |= _pages(address, crawls, SHOT if backfill and url else None)
                if backfill:
                    figures |= _backfill(instance, address, crawls)
                figures["memory of the webserver with its code server"] = _memory(server)
            figures["memory of the daemon with its code server"] = _memory(daemon)
    return {"storage": storage, "crawls": crawls, "figures": figures}


def _settings(folder: Path) -> Path:
    text = f"""
[lake]
root = "{folder}/lake"
[crawl_source]
collinfo_url = "{folder}/crawls/collinfo.json"
data_url = "{folder}/crawls"
[discovery]
interval_s = 10
[clip]
model = "laion-assets-tiny"
pretrained = "laion-assets-tiny"
[safety]
prompts = "sample"
"""
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def _home(home: Path, url: str | None) -> None:
    """Write the deployment's dagster.yaml, but start no runs: they would be measured, too."""
    home.mkdir(parents=True)
    config = yaml.safe_load(DAGSTER_CONFIG.read_text())
    config["concurrency"]["runs"]["max_concurrent_runs"] = 0
    config["nux"] = {"enabled": False}  # the dialog that greets new users
    if url:
        config["storage"] = {"postgres": {"postgres_url": url}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))


@contextmanager
def _dagster(
    what: str, environment: dict[str, str], folder: Path, more: list[str]
) -> Iterator[subprocess.Popen[bytes]]:
    module = {"daemon": ["dagster._daemon", "run"], "webserver": ["dagster_webserver"]}[what]
    with (folder / f"{what}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module, "-w", ROOT / "workspace.yaml", *more],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _webserver(
    environment: dict[str, str], folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = postgres.free_port()
    address = f"http://127.0.0.1:{port}"
    with _dagster("webserver", environment, folder, ["-h", "127.0.0.1", "-p", str(port)]) as server:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{address}/server_info", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        yield server, address


def _ticks(instance: dg.DagsterInstance) -> dict[str, str]:
    """Times of the daemon's own ticks, including calls of the code server; the first separately."""
    figures = {}
    wanted = {
        "tick of the crawl sensor": "new_crawl_sensor",
        "tick of the automation": "follow_upstream",
    }
    deadline = time.monotonic() + _PATIENCE_S
    while wanted and time.monotonic() < deadline:
        time.sleep(1)
        for state in instance.all_instigator_state():
            for what, name in list(wanted.items()):
                if state.instigator_name != name:
                    continue
                ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
                ended = [tick for tick in reversed(ticks) if tick.end_timestamp]
                if len(ended) < TICKS:
                    continue
                seconds = [(tick.end_timestamp or 0.0) - tick.timestamp for tick in ended]
                failed = [tick for tick in ended if tick.is_failure]
                if failed:
                    raise SystemExit(f"{name} failed: {failed[0].error}")
                figures[f"{what}, first"] = f"{seconds[0]:.2f} s"
                figures[what] = f"{statistics.median(seconds[1:]):.2f} s"
                del wanted[what]
    if wanted:
        names = ", ".join(wanted.values())
        raise SystemExit(f"{names} did not tick {TICKS} times within {_PATIENCE_S:.0f} s")
    return figures


def _pages(address: str, crawls: int, shot: Path | None) -> dict[str, str]:
    partition = f"{crawl_names(crawls)[-1]}|07"
    pages = {
        "page of the asset graph": ("/asset-groups", "embeddings"),
        "page of an asset": (f"/assets/{_ASSET}?view=overview", _ASSET),
        "page of an asset's partitions": (f"/assets/{_ASSET}?view=partitions", _ASSET),
        "page of one partition": (
            f"/assets/{_ASSET}?view=partitions&partition={partition}",
            _ASSET,
        ),
    }
    figures = {}
    with browser_page() as page:
        watch = Watch(page)
        for again in (False, True):
            for what, (path, text) in pages.items():
                try:
                    seconds = watch.open(address + path, text)
                except Exception:
                    watch.shot(WORK / "scale" / "failed.png")
                    raise
                watch.shot(WORK / "scale" / f"{what.replace(' ', '-').replace(chr(39), '')}.png")
                if again:
                    figures[what] = f"{seconds:.1f} s"
        if shot:
            watch.open(address + pages["page of an asset's partitions"][0], _ASSET)
            watch.shot(shot)
    return figures


def _backfill(instance: dg.DagsterInstance, address: str, crawls: int) -> dict[str, str]:
    """Request a backfill as the UI does, and wait until the daemon has queued its runs."""
    partitions = [
        f"{crawl}|{number:02d}" for crawl in crawl_names(crawls)[-10:] for number in range(100)
    ][:BACKFILL]
    params = {
        "assetSelection": [{"path": [asset]} for asset in SEGMENT_ASSETS],
        "partitionNames": partitions,
    }
    body = json.dumps({"query": _LAUNCH, "variables": {"params": params}}).encode()
    request = urllib.request.Request(
        f"{address}/graphql", body, {"Content-Type": "application/json"}
    )
    started = time.monotonic()
    with urllib.request.urlopen(request, timeout=120) as answer:
        content = json.load(answer)
    if content["data"]["launchPartitionBackfill"]["__typename"] != "LaunchBackfillSuccess":
        raise SystemExit(f"the backfill was not accepted: {content}")
    asked = time.monotonic() - started
    queued = 0
    while queued < BACKFILL and time.monotonic() - started < _PATIENCE_S:
        time.sleep(1)
        queued = instance.get_runs_count(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED])
        )
    seconds = time.monotonic() - started
    return {
        f"requesting a backfill of {BACKFILL:,} partitions × 9 assets": f"{asked:.1f} s",
        "its runs queued by the daemon": f"{queued / seconds:.1f} a second ({queued:,})",
    }


def _overhead(environment: dict[str, str], crawls: int) -> str:
    """Median time per asset of a whole run, in its own process, of nine assets that do nothing."""
    seconds = []
    for number in range(3):
        started = time.monotonic()
        done = subprocess.run(
            [
                *[sys.executable, "-m", "dagster"],
                *["asset", "materialize", "--select", "*", "-m", "benchmarks.scale.overhead"],
                *["--partition", f"{crawl_names(crawls)[-1]}|{number:02d}"],
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"the idle run failed: {done.stderr[-2000:]}")
        seconds.append(time.monotonic() - started)
    return f"{statistics.median(seconds) / len(SEGMENT_ASSETS):.2f} s"


def _memory(process: subprocess.Popen[bytes]) -> str:
    return f"{tree_bytes(process.pid)[0] / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
