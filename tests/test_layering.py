"""The data's way is one way, and the definitions stay light to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resources
import sensors

ROOT = Path(__file__).parent.parent
WAY = [
    *("wat", "pairs", "dedup", "download", "clip", "safety", "filtering", "knn", "generation"),
    *("stats", "release", "search"),
]
SHARED = {
    "errors",
    "files",
    "funnel",
    "layout",
    "options",
    "processes",
    "progress",
    "schemas",
    "segments",
    "removals",
}
MORE = {package: {"lake"} for package in ("knn", "stats", "release", "search")}
"""An index is asked beside its lake, statistics and releases are taken from it, and the service
follows what it publishes."""
HEAVY = ["torch", "diffusers", "transformers", "open_clip", "faiss", "img2dataset", "pandas"]
HEAVY += ["matplotlib", "timm"]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", WAY)
def test_a_domain_package_looks_only_back(package: str) -> None:
    allowed = set(WAY[: WAY.index(package) + 1]) | SHARED | MORE.get(package, set())
    for path in (ROOT / "laion_assets" / package).rglob("*.py"):
        for module in imported(path):
            top, _, rest = module.partition(".")
            assert top not in ("dagster", "resources", "sensors"), f"{path} imports {module}"
            if top == "laion_assets" and rest:
                assert rest.split(".")[0] in allowed, f"{path} imports {module}"


def test_the_lake_keeps_its_layout_to_itself() -> None:
    packages = ("laion_assets", "resources", "sensors", "deploy", "benchmarks")
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        if (ROOT / "laion_assets" / "lake") in path.parents:
            continue
        text = path.read_text(encoding="utf-8")
        for name in (".staging", "_manifest.json"):
            assert f'"{name}' not in text, f"{path} names {name}"
            assert f"/{name}" not in text, f"{path} names {name}"
        inside = [module for module in imported(path) if module.startswith("laion_assets.lake.")]
        assert not inside, f"{path} imports {inside}"


def test_there_is_no_module_called_utils() -> None:
    assert not list(ROOT.glob("laion_assets/**/util*"))


def test_the_generic_packages_are_ours() -> None:
    for package in (resources, sensors):
        assert package.__file__
        assert Path(package.__file__).parent.parent == ROOT


def test_the_definitions_import_nothing_heavy() -> None:
    code = f"import sys, laion_assets.definitions;print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
