"""The data's way is one way, the roof stands on it, and the definitions stay light to import."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import resources
import sensors
from laion_assets import layout

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "laion_assets"
PRODUCT = [
    path
    for folder in ("laion_assets", "resources", "sensors")
    for path in (ROOT / folder).rglob("*.py")
]
WAY = [
    *("wat", "pairs", "url_lists", "dedup", "download", "clip", "safety", "near_duplicates"),
    *("heads", "filtering", "knn", "generation", "comparison", "lookup", "stats", "release"),
    "search",
]
GROUND = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "definitions", "settings"}
SHARED = GROUND | {"removals"}
MORE = {package: {"lake"} for package in ("knn", "lookup", "stats", "release", "search")}
MORE["url_lists"] = {"crawl"}
MORE["generation"] = {"sample_crawl"}
"""A list is a crawl. An index is asked beside its lake, statistics and releases are taken from it,
and the service follows what it publishes. Samples of the drawn crawl are judged by what it drew."""
DOMAIN = {*WAY, "crawl", "removals", "lake", "sample_crawl"}

LONGEST_MODULE: Final = 450
LONGEST_FUNCTION: Final = 80
LOOSE_MODULES = 10
FILES_WITH_A_NAME: Final = 4


@dataclass
class Source:
    """What the tests ask of a file, parsed once for all of them."""

    lines: int
    imported: list[str] = field(default_factory=list)
    literals: set[str] = field(default_factory=set)
    functions: dict[str, int] = field(default_factory=dict)
    """Each function's number of lines."""
    docstrings: list[str] = field(default_factory=list)


@functools.cache
def source(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    found = Source(len(text.splitlines()))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.imported.append(node.module)
            found.imported += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.literals.add(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.docstrings.append(inspect.cleandoc(str(node.value.value)))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            found.functions[node.name] = max(lines, found.functions.get(node.name, 0))
    return found


@pytest.mark.parametrize("package", WAY)
def test_a_domain_package_looks_only_back(package: str) -> None:
    allowed = set(WAY[: WAY.index(package) + 1]) | SHARED | MORE.get(package, set())
    for path in (PACKAGE / package).rglob("*.py"):
        for module in source(path).imported:
            top, _, rest = module.partition(".")
            assert top not in ("dagster", "resources", "sensors"), f"{path} imports {module}"
            if top == "laion_assets" and rest and rest != "__version__":
                assert rest.split(".")[0] in allowed, f"{path} imports {module}"


def test_the_dagster_side_stands_on_the_resources_and_these_on_the_domain() -> None:
    for path in PRODUCT:
        place = path.relative_to(ROOT).parts
        for module in source(path).imported:
            parts = module.split(".")
            if place[0] == "resources":
                assert parts[:2] != ["laion_assets", "defs"], f"{path} imports {module}"
                assert parts[0] != "sensors", f"{path} imports {module}"
            if place[0] == "laion_assets" and place[1] in DOMAIN:
                assert parts[0] not in ("dagster", "resources", "sensors"), f"{path}: {module}"
                assert parts[:2] != ["laion_assets", "defs"], f"{path} imports {module}"
        if place[0] == "laion_assets" and place[1].removesuffix(".py") in GROUND:
            roots = {module.split(".")[0] for module in source(path).imported}
            assert not roots & {"dagster", "resources"}, path


def test_only_one_file_imports_what_dagster_keeps_to_itself() -> None:
    private = {
        path.relative_to(ROOT).as_posix()
        for path in PRODUCT
        for module in source(path).imported
        if re.match(r"dagster\w*\._", module)
    }
    assert private == {"laion_assets/defs/internals.py"}


def test_the_lake_keeps_its_layout_to_itself() -> None:
    packages = ("laion_assets", "resources", "sensors", "deploy", "benchmarks")
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        if path.is_relative_to(PACKAGE / "lake"):
            continue
        text = path.read_text(encoding="utf-8")
        for name in (".staging", "_manifest.json"):
            assert f'"{name}' not in text, f"{path} names {name}"
            assert f"/{name}" not in text, f"{path} names {name}"
        inside = {
            module
            for module in source(path).imported
            if module.startswith("laion_assets.lake.")
            and (PACKAGE / "lake" / f"{module.split('.')[2]}.py").exists()
        }
        assert not inside, f"{path} imports {inside}"


def test_the_root_has_few_modules() -> None:
    loose = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= LOOSE_MODULES, loose


def test_no_module_and_no_function_is_long() -> None:
    for path in PRODUCT:
        assert source(path).lines <= LONGEST_MODULE, path
        for name, lines in source(path).functions.items():
            assert lines <= LONGEST_FUNCTION, f"{path}: {name} has {lines} lines"


def test_an_assets_name_is_written_in_few_files() -> None:
    for asset in (*layout.PARTITIONS, *layout.OVER_ALL):
        files = [
            path.relative_to(ROOT).as_posix() for path in PRODUCT if asset in source(path).literals
        ]
        assert len(files) <= FILES_WITH_A_NAME, f"{asset}: {files}"


def test_there_is_no_module_called_utils() -> None:
    assert not list(ROOT.glob("laion_assets/**/util*"))


def test_the_generic_packages_are_ours() -> None:
    for package in (resources, sensors):
        assert package.__file__
        assert Path(package.__file__).parent.parent == ROOT


def of_extras() -> set[str]:
    """The modules that the extras by role install, and pandas, which torch's friends bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [
        line for role in ("work", "search", "clip", "all", "generation") for line in extras[role]
    ]
    names = {canonicalize_name(Requirement(line).name) for line in asked} - {"laion-assets"}
    brought = {
        module
        for module, brings in packages_distributions().items()
        if names & {canonicalize_name(name) for name in brings}
    }
    assert {"torch", "open_clip", "faiss", "img2dataset", "uvicorn"} <= brought
    return brought | {"pandas", "timm", "cv2"}


def test_the_base_installation_runs_the_definitions_and_the_command_line() -> None:
    """Nothing of an extra is imported, nor are the settings read."""
    code = f"""
import sys
import laion_assets.cli, laion_assets.definitions, laion_assets.defs.removal.survey
import laion_assets.stats.catalog, laion_assets.stats.question, laion_assets.stats.why
laion_assets.cli.build_parser()
print(sorted({of_extras()!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"LAION_ASSETS_CONFIG": "/nonexistent.toml"},
    )
    assert done.stdout.strip() == "[]"


def test_the_english_is_the_fields() -> None:
    """No words that readers had to decipher: subjects first, and one term for one thing."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for path in (*PRODUCT, *pages):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\btold\b|made anew", text, re.IGNORECASE), path
    for path in PRODUCT:
        for text in source(path).docstrings:
            assert not re.match(r"(Of|That|None of|To be)\b", text), f"{path}: {text[:60]}"
