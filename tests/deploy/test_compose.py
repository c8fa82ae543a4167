"""The files of `deploy/compose` fit together, and nobody gets in but by the proxy."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from laion_assets.cli.parser import build_parser
from laion_assets.settings import load_settings

ROOT = Path(__file__).parent.parent.parent
COMPOSE = ROOT / "deploy" / "compose"
SERVICE_KEYS: Final = {
    *("build", "cap_add", "cap_drop", "command", "depends_on", "environment", "healthcheck"),
    *("image", "networks", "ports", "restart", "security_opt", "stop_grace_period", "ulimits"),
    "volumes",
}
"""Keys of the Compose specification's `service` that are used here."""
CONDITIONS: Final = {"service_started", "service_healthy", "service_completed_successfully"}
HAS_COMPOSE: Final = (
    shutil.which("docker") is not None
    and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
)


def whole() -> dict[str, Any]:
    """The file, its merge keys resolved."""
    value: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return value


def services() -> dict[str, dict[str, Any]]:
    value: dict[str, dict[str, Any]] = whole()["services"]
    return value


def networks(service: dict[str, Any]) -> set[str]:
    return set(service["networks"])


def test_it_is_a_compose_file_in_which_everything_exists() -> None:
    of = whole()
    assert {key for key in of if not key.startswith("x-")} == {
        *("name", "services", "networks", "volumes"),
    }
    for name, service in services().items():
        assert set(service) <= SERVICE_KEYS, name
        assert networks(service) <= set(of["networks"]), name
        assert service["restart"] == "unless-stopped"
        assert "no-new-privileges:true" in service["security_opt"]
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] in CONDITIONS
            healthy = wanted["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in services()[other]
        for volume in service["volumes"]:
            source, _, target = re.sub(r"\$\{[^}]+\}", "/host", volume).partition(":")
            assert target.startswith("/")
            if source.startswith("./"):
                assert (COMPOSE / source).is_file(), volume
            elif not source.startswith("/host"):
                assert source in of["volumes"], volume


def test_every_variable_is_in_the_example() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    asked = dict(re.findall(r"\$\{(\w+)(:\?|:-)", text))
    assert len(re.findall(r"\$", text)) == len(re.findall(r"\$\{\w+(?::\?|:-)", text))
    needed = {name for name, kind in asked.items() if kind == ":?"}
    assert needed == set(re.findall(r"^(\w+)=", (COMPOSE / "env.example").read_text(), re.M))
    login = set(re.findall(r"\{\$(\w+)\}", (COMPOSE / "Caddyfile").read_text()))
    assert login == set(services()["proxy"]["environment"])


def test_the_images_are_built_with_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    built = {}
    for service in services().values():
        if build := service.get("build"):
            assert (COMPOSE / build["context"]).resolve() == ROOT
            assert (ROOT / build["dockerfile"]).is_file()
            built[service["image"]] = set(build["args"]["EXTRAS"].split(","))
            assert built[service["image"]] <= set(extras["optional-dependencies"])
    used = {service["image"] for service in services().values()}
    assert {image for image in used if image.startswith("laion-assets")} == set(built)
    assert not any("work" in built[services()[name]["image"]] for name in ("daemon", "webserver"))


def test_the_proxy_is_the_only_way_in() -> None:
    of = services()
    assert [name for name, service in of.items() if "ports" in service] == ["proxy"]
    members = {
        network: {name for name, service in of.items() if network in networks(service)}
        for network in whole()["networks"]
    }
    assert members == {
        "data": {"postgres", "code", "daemon", "webserver"},
        "ui": {"proxy", "webserver"},
        "pages": {"proxy", "search"},
        "crawl": {"code"},
        "outside": {"proxy", "search"},
    }
    internal = {name for name, network in whole()["networks"].items() if network.get("internal")}
    assert internal == {"data", "ui", "pages"}
    caddy = (COMPOSE / "Caddyfile").read_text()
    sites = dict(re.findall(r"^\{\$(\w+)\} \{\n(.*?)^\}", caddy, re.M | re.S))
    assert "basic_auth" in sites["DAGSTER_NAME"]
    assert "{$LOGIN_NAME} {$LOGIN_HASH}" in sites["DAGSTER_NAME"]
    assert "reverse_proxy webserver:3000" in sites["DAGSTER_NAME"]
    assert "reverse_proxy search:8800" in sites["SEARCH_NAME"]


def test_the_commands_exist_and_the_ports_are_those_that_are_asked() -> None:
    of = services()
    webserver, code = of["webserver"]["command"], of["code"]["command"]
    assert webserver[webserver.index("--port") + 1] == "3000"
    location = yaml.safe_load((COMPOSE / "workspace.yaml").read_text())["load_from"][0]
    assert location["grpc_server"]["host"] in of
    assert str(location["grpc_server"]["port"]) == code[code.index("--port") + 1]
    for name, command in (("search", "serve"), ("webserver", "webserver")):
        program, *words = of[name]["command"]
        assert program == "laion-assets"
        assert build_parser().parse_args(words).command.name == command
    assert load_settings(COMPOSE / "settings.toml").serve.port == 8800


def test_the_settings_are_those_of_this_server() -> None:
    settings = load_settings(COMPOSE / "settings.toml")
    of = services()
    for name in ("code", "search"):
        targets = [volume.rpartition("}:")[2] for volume in of[name]["volumes"]]
        assert any(target.split(":")[0] == settings.lake.root for target in targets), name
        assert any(volume.endswith(":/config/settings.toml:ro") for volume in of[name]["volumes"])
    address = of["proxy"]["networks"]["pages"]["ipv4_address"]
    [subnet] = whole()["networks"]["pages"]["ipam"]["config"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network(subnet["subnet"])
    handed_out = ipaddress.ip_network(subnet["ip_range"])
    assert handed_out.subnet_of(ipaddress.ip_network(subnet["subnet"]))  # type: ignore[arg-type]
    assert ipaddress.ip_address(address) not in handed_out
    assert settings.serve.proxies == (address,)
    example = (COMPOSE / "env.example").read_text()
    assert f"SEARCH_NAME={settings.serve.hosts[0]}" in example
    assert f"DAGSTER_NAME={settings.notify.ui.removeprefix('https://')}" in example
    assert settings.download.contact == "", "an example's contact would be somebody else's"
    needed = 4 * settings.download.concurrency + 256
    assert of["code"]["ulimits"]["nofile"]["soft"] > needed


@pytest.mark.skipif(not HAS_COMPOSE, reason="Docker Compose is not installed")
def test_docker_compose_takes_it(tmp_path: Path) -> None:
    values = dict.fromkeys(re.findall(r"\$\{(\w+)", (COMPOSE / "compose.yaml").read_text()), "x")
    (tmp_path / ".env").write_text("".join(f"{name}={text}\n" for name, text in values.items()))
    command = ["docker", "compose", "--env-file", str(tmp_path / ".env"), "config", "--quiet"]
    subprocess.run(command, cwd=COMPOSE, check=True)
