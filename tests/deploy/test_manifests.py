"""The files of `deploy/` are valid for Kubernetes, Dagster's launchers and our settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config_schema
from dagster_k8s import K8sRunLauncher
from dagster_ray import RayRunLauncher

from laion_assets.settings import load_settings

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KINDS = "1.34"


def kustomization() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return value


def resources() -> Iterator[dict[str, Any]]:
    for name in (*kustomization()["resources"], "secrets.example.yaml"):
        yield from yaml.safe_load_all((KUBERNETES / name).read_text())


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {of["metadata"]["name"]: of for of in resources() if of["kind"] == kind}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, deployment in of_kind("Deployment").items():
        yield name, deployment["spec"]["template"]


def configured(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(path.read_text())
    return value


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://dagster@127.0.0.1/dagster")
    monkeypatch.setenv("RAY_JOBS_ADDRESS", "http://127.0.0.1:8265")


def test_the_manifests_are_kubernetes() -> None:
    for resource in resources():
        kubernetes_validate.validate(resource, KINDS, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Service", "spec": {"port": 1}}, KINDS, strict=True
        )


def test_everything_that_they_refer_to_exists() -> None:
    secrets, accounts = of_kind("Secret"), of_kind("ServiceAccount")
    maps = {of["name"] for of in kustomization()["configMapGenerator"]}
    labels = [template["metadata"]["labels"] for _, template in pods()]
    for _, template in pods():
        spec = template["spec"]
        assert spec["serviceAccountName"] in accounts
        volumes = {volume["name"] for volume in spec["volumes"]}
        for volume in spec["volumes"]:
            assert volume.get("configMap", {"name": next(iter(maps))})["name"] in maps
        for container in spec["containers"]:
            assert {of["name"] for of in container.get("volumeMounts", [])} <= volumes
            assert {of["secretRef"]["name"] for of in container["envFrom"]} <= set(secrets)
    for service in of_kind("Service").values():
        assert service["spec"]["selector"] in labels
    location = configured(KUBERNETES / "workspace.yaml")["load_from"][0]["grpc_server"]
    assert location["host"] in of_kind("Service")
    for name in ("settings.toml", "dagster.yaml", "workspace.yaml"):
        assert name in kustomization()["configMapGenerator"][0]["files"]


def test_the_webserver_is_reached_through_the_login_alone() -> None:
    spec = dict(pods())["laion-assets-webserver"]["spec"]
    webserver, login = spec["containers"]
    assert webserver["command"][webserver["command"].index("--host") + 1] == "127.0.0.1"
    assert "--upstream=http://127.0.0.1:3000" in login["args"]
    service = of_kind("Service")["laion-assets-webserver"]["spec"]["ports"][0]
    assert service["targetPort"] == login["ports"][0]["name"]
    policy = of_kind("NetworkPolicy")["laion-assets-webserver"]["spec"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": 4180}]}]


@pytest.mark.parametrize(
    "path", [DEPLOY / "ray", KUBERNETES, DEPLOY / "compose"], ids=lambda p: p.name
)
def test_dagster_accepts_its_configuration(path: Path) -> None:
    whole = configured(path / "dagster.yaml")
    schema = {
        name: field
        for name, field in dagster_instance_config_schema().items()
        if name in {"storage", "run_monitoring", "run_retries", "concurrency", "retention"}
    }
    result = process_config(
        resolve_to_config_type(schema), {name: whole[name] for name in schema if name in whole}
    )
    assert result.success, result.errors
    assert whole["run_monitoring"]["max_resume_run_attempts"] == 0, "resuming fails at this version"


def test_the_launchers_accept_their_configuration() -> None:
    for path, launcher in ((DEPLOY / "ray", RayRunLauncher), (KUBERNETES, K8sRunLauncher)):
        whole = configured(path / "dagster.yaml")["run_launcher"]
        assert whole["class"] == launcher.__name__
        result = process_config(resolve_to_config_type(launcher.config_type()), whole["config"])
        assert result.success, result.errors


def test_runs_find_their_secrets_account_and_disk() -> None:
    config = configured(KUBERNETES / "dagster.yaml")["run_launcher"]["config"]
    assert config["job_namespace"] in of_kind("Namespace")
    assert config["service_account_name"] in of_kind("ServiceAccount")
    assert set(config["env_secrets"]) <= set(of_kind("Secret"))
    role = of_kind("Role")["laion-assets-launch"]
    jobs = next(rule for rule in role["rules"] if "jobs" in rule["resources"])
    assert {"create", "get", "list", "delete"} <= set(jobs["verbs"])
    pod = config["run_k8s_config"]
    labels = pod["pod_template_spec_metadata"]["labels"]
    policy = of_kind("NetworkPolicy")["laion-assets-run"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    settings = load_settings(KUBERNETES / "settings.toml")
    mounts = {of["mount_path"] for of in pod["container_config"]["volume_mounts"]}
    assert Path(settings.lake.cache).parent.as_posix() in mounts
    assert settings.lake.root.startswith("s3://")
