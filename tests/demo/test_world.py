"""Nothing of a demo outlives it, and two demos of one checkout take turns."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import pytest

from laion_assets.defs.partitions import PARTITION_TAG
from laion_assets.demo.services import DemoError
from laion_assets.demo.world import (
    Places,
    crawl_server,
    prepare,
    running_dagster,
    sole_demo,
    stop_leftovers,
)
from laion_assets.files import write_json
from laion_assets.sample_crawl.build import build_sample_crawl
from laion_assets.sample_crawl.server import SampleServer
from laion_assets.settings import load_settings, sample_config
from tests.conftest import heard
from tests.processes import PATIENCE_S, alive, free_port, served, until

ROOT = Path(__file__).parents[2]
DEMO = """
import signal, subprocess, sys, time
from pathlib import Path
from laion_assets.demo.world import Places, crawl_server, sole_demo
from laion_assets.settings import load_settings

if __name__ == "__main__":
    # Earlier tests may have left the signal ignored, and that is inherited.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    root, config = Path(sys.argv[1]), Path(sys.argv[2])
    with sole_demo(Places(root)), crawl_server(Places(root), load_settings(config)) as group:
        run = subprocess.Popen(["sleep", "300"], process_group=group)
        (root / "up").write_text(f"{group} {run.pid}")
        time.sleep(300)
"""


def config_on(port: int, root: Path) -> Path:
    path = root / "config.toml"
    path.write_text(sample_config().read_text().replace(":8799", f":{port}"))
    return path


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places(tmp_path)
    build_sample_crawl(places.crawl)
    return places


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_killed_demo(places: Places, number: int) -> None:
    port = free_port()
    config = config_on(port, places.root)
    script = places.root / "demo.py"
    script.write_text(DEMO)
    with subprocess.Popen([sys.executable, str(script), str(places.root), str(config)]) as demo:
        until((places.root / "up").exists, "the demo")
        group, run = map(int, (places.root / "up").read_text().split())
        assert served(port)
        os.kill(demo.pid, number)
    until(lambda: not alive(run), "the end of its run")
    until(lambda: not alive(group), "the end of its crawl server")
    until(lambda: not served(port), "the end of its port")
    with crawl_server(places, load_settings(config)):
        assert served(port)
    assert not served(port)


def test_a_taken_port_is_an_error(places: Places) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = config_on(server.getsockname()[1], places.root)
        with (
            pytest.raises(DemoError, match=r"cannot be served .*LAION_ASSETS_CONFIG"),
            crawl_server(places, load_settings(config)),
        ):
            pass


def test_one_crawl_is_served_by_all_who_need_it(places: Places, tmp_path: Path) -> None:
    config = config_on(free_port(), places.root)
    settings = load_settings(config)
    url = f"{settings.crawl_source.data_url}collinfo.json"

    def answers() -> bool:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return bool(answer.status == 200)

    with crawl_server(places, settings):
        with SampleServer(places.crawl, int(url.split(":")[2].partition("/")[0])) as sharing:
            assert answers()
            assert not sharing.requests, "the first one answers as long as it is there"
        assert answers()
        other = Places(tmp_path / "other")
        shutil.copytree(places.crawl, other.crawl)
        (other.crawl / "routes.json").write_text("{}")
        with (
            pytest.raises(DemoError, match="something else is served there"),
            crawl_server(other, settings),
        ):
            pass
        assert answers()


def test_a_second_server_takes_over_when_the_first_ends(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(config_on(free_port(), places.root))
    port = urlsplit(settings.crawl_source.data_url).port
    assert port
    with ExitStack() as ends_later:
        with crawl_server(places, settings), monkeypatch.context() as patch:
            patch.setenv("http_proxy", "http://127.0.0.1:1")  # loopback is not asked of a proxy
            second = ends_later.enter_context(SampleServer(places.crawl, port))
            third = ends_later.enter_context(SampleServer(places.crawl, port))
        until(lambda: served(port), "another server")
        with urllib.request.urlopen(f"{second.url}collinfo.json", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        assert second.requests + third.requests == {"127.0.0.1/collinfo.json": 1}
    assert not served(port)


def test_a_killed_demos_address_is_not_believed(places: Places) -> None:
    write_json(places.dagster, {"url": "http://127.0.0.1:3001", "idle": True})
    with sole_demo(places):
        assert running_dagster(places, idle=True) is None


def test_a_second_demo_waits_its_turn(places: Places) -> None:
    assert running_dagster(places) is None
    with sole_demo(places):
        write_json(places.dagster, {"url": "http://127.0.0.1:3000", "idle": False})
        assert running_dagster(places) == "http://127.0.0.1:3000"
        assert running_dagster(places, idle=True) is None
        lines: list[str] = []
        with (
            heard(lines.append),
            pytest.raises(DemoError, match="another demo is running"),
            sole_demo(places, 0.3),
        ):
            pass
        [line] = lines
        assert line.startswith("waiting for another demo of this checkout to end")
        assert line.endswith("Dagster's UI is at http://127.0.0.1:3000")
        write_json(places.dagster, {"url": "http://127.0.0.1:3001", "idle": True})
        assert running_dagster(places, idle=True) == "http://127.0.0.1:3001"
    assert running_dagster(places) is None, "nobody holds the checkout: a killed demo left the file"
    with sole_demo(places):
        pass


def test_an_interrupted_run_is_left_to_the_crawl_sensor(places: Places) -> None:
    """It launches failed runs again; canceled ones it would leave to a person."""

    instance = prepare(places)
    assert instance.run_retries_enabled
    tags = {PARTITION_TAG: "CC-MAIN-2000-05|00"}
    for status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING):
        instance.add_run(dg.DagsterRun("segment", status=status, tags=tags))
    stop_leftovers(places, instance)
    runs = list(instance.get_runs())
    assert [run.status for run in runs] == [dg.DagsterRunStatus.FAILURE] * 2
    assert not any(run.is_complete_and_waiting_to_retry for run in runs)
