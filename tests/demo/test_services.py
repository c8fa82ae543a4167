"""Dagster's services as the demo starts them, asked over real HTTP and WebSockets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from laion_assets.demo.services import Dagster, DemoError, dagster_services
from laion_assets.settings import CONFIG_VARIABLE, DAGSTER_CONFIG
from tests.demo.test_world import ROOT
from tests.processes import PATIENCE_S, alive, free_port, until

HIDDEN: Final = "hushhush"
JSON: Final = {"Content-Type": "application/json"}
LOCATIONS: Final = (
    "{ locationStatusesOrError { ... on WorkspaceLocationStatusEntries"
    " { entries { name loadStatus } } } }"
)
SETTING: Final = 'mutation { setConcurrencyLimit(concurrencyKey: "stolen", limit: 7) }'
BODY: Final = json.dumps({"query": SETTING})
LIMITS: Final = "{ instance { concurrencyLimits { concurrencyKey } } }"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("dagster")
    shutil.copy(DAGSTER_CONFIG, home)
    return home


@pytest.fixture(scope="module")
def dagster(home: Path) -> Iterator[Dagster]:
    config = home / "settings.toml"
    options = f'storage_options = {{ endpoint = "http://{HIDDEN}.test", {HIDDEN} = "1" }}\n'
    sections = (f'[lake]\nroot = "{home}/lake"\n{options}', f"[crawl_source]\n{options}")
    config.write_text("".join(sections))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONFIG_VARIABLE, str(config))
        with dagster_services(ROOT, home, free_port(), home / "log") as running:
            yield running


def ask(dagster: Dagster, query: str) -> Any:
    answer = httpx.post(f"{dagster.url}/graphql", json={"query": query}, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def limits(dagster: Dagster) -> set[str]:
    return {row["concurrencyKey"] for row in ask(dagster, LIMITS)["instance"]["concurrencyLimits"]}


def test_the_code_location_has_its_name_in_the_workspace(dagster: Dagster) -> None:
    entries = ask(dagster, LOCATIONS)["locationStatusesOrError"]["entries"]
    named = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert [entry["name"] for entry in entries] == [
        location["python_module"]["location_name"] for location in named
    ]
    assert [entry["loadStatus"] for entry in entries] == ["LOADED"]


@pytest.mark.parametrize(
    ("method", "query", "body", "headers"),
    [
        ("GET", SETTING, "", {}),
        ("POST", SETTING, "", {"Content-Type": "text/plain"}),
        ("POST", SETTING, "", {"Origin": "http://127.0.0.1:1"}),
        ("POST", SETTING, "", {"Origin": "null"}),
        ("POST", "", SETTING, {"Content-Type": "application/graphql", "Origin": "https://x.test"}),
        ("POST", "", BODY, {"Content-Type": "text/plain; application/json"}),
        ("POST", "", BODY, {**JSON, "Origin": "https://x.test"}),
        ("POST", "", BODY, {**JSON, "Sec-Fetch-Site": "same-site"}),
        ("POST", "", BODY, {**JSON, "Host": "rebound.test"}),
    ],
)  # fmt: skip
def test_what_another_site_could_send_changes_nothing(
    dagster: Dagster, method: str, query: str, body: str, headers: dict[str, str]
) -> None:
    params = {"query": query} if query else None
    answer = httpx.request(
        method,
        f"{dagster.url}/graphql",
        params=params,
        content=body,
        headers=headers,
        timeout=PATIENCE_S,
    )
    assert answer.status_code in (400, 403)
    assert "stolen" not in limits(dagster)


def test_programs_and_links_get_through(dagster: Dagster) -> None:
    ask(dagster, SETTING.replace("stolen", "mine"))
    assert "mine" in limits(dagster)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    embedded = link | {"Sec-Fetch-Mode": "no-cors"}
    with httpx.Client(base_url=dagster.url, timeout=PATIENCE_S) as http:
        assert http.get("/asset-groups", headers=link).status_code == 200
        assert http.get("/asset-groups", headers=embedded).status_code == 403


def test_own_pages_subscribe_and_others_do_not(dagster: Dagster) -> None:
    url = f"{dagster.url.replace('http', 'ws')}/graphql"
    protocol = [Subprotocol("graphql-ws")]
    for refused in ("https://x.test", "http://127.0.0.1:1"):
        with (
            pytest.raises(InvalidStatus),
            connect(url, subprotocols=protocol, origin=Origin(refused)),
        ):
            pass
    with connect(url, subprotocols=protocol, origin=Origin(dagster.url)) as socket:
        socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket.recv(10))["type"] == "connection_ack"


def test_the_uis_graphql_does_not_show_what_is_masked(dagster: Dagster) -> None:
    """The resource pages, the launchpad's defaults, and its schema."""
    where = 'repositoryName: "__repository__", repositoryLocationName: "laion-assets"'
    resources = ask(
        dagster,
        f"{{ allTopLevelResourceDetailsOrError(repositorySelector: {{ {where} }})"
        " { ... on ResourceDetailsList { results { name configuredValues { key value type }"
        " configFields { name defaultValueAsJson } } } } }",
    )
    by_name = {
        resource["name"]: {value["key"]: value["value"] for value in resource["configuredValues"]}
        for resource in resources["allTopLevelResourceDetailsOrError"]["results"]
    }
    assert by_name["lake"]["root"].endswith('/lake"')
    selector = f'{{ pipelineName: "segment", {where} }}'
    launchpad = ask(
        dagster,
        f"{{ runConfigSchemaOrError(selector: {selector}) {{ ... on RunConfigSchema {{"
        " rootDefaultYaml allConfigTypes { ... on CompositeConfigType { fields { name"
        " defaultValueAsJson } } } } } }",
    )
    assert "lake" in launchpad["runConfigSchemaOrError"]["rootDefaultYaml"]
    for answer in (resources, launchpad):
        assert HIDDEN not in json.dumps(answer)


def test_a_taken_port_is_an_error(dagster: Dagster, home: Path) -> None:
    port = int(dagster.url.rpartition(":")[2])
    with pytest.raises(DemoError, match="is taken"), dagster_services(ROOT, home, port):
        pass


def test_a_service_ends_with_its_starter(tmp_path: Path) -> None:
    service = "laion_assets.demo.service_process"
    script = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, '-m', {service!r}, str(os.getpid()), 'http.server', '0']\n"
        "print(subprocess.Popen(command, stdout=subprocess.PIPE).pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        starter.kill()
    until(lambda: not alive(pid), "the end of the service")
