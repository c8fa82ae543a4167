"""The wheel holds all that the package needs, and works without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.soak.checkout import copy_checkout

PACKAGES = ("laion_assets", "resources", "sensors")

ASK = """
import json

import laion_assets
import resources
import sensors
from laion_assets.clip import identity
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.thresholds import threshold_for
from laion_assets.definitions import defs
from laion_assets.filtering.recipe import Recipe
from laion_assets.safety.minors import load_words
from laion_assets.safety.prompts import load_prompts
from laion_assets.sample_crawl.plan import Pictures, Plan
from laion_assets.settings import load_settings, sample_config

settings = load_settings(sample_config())
print(json.dumps({
    "files": [laion_assets.__file__, resources.__file__, sensors.__file__],
    "config": str(sample_config()),
    "weights": str(identity.WEIGHTS / f"{settings.clip.pretrained}.safetensors"),
    "assets": len(defs().resolve_asset_graph().get_all_asset_keys()),
    "threshold": threshold_for(settings.clip.key, Recipe()),
    "prompts": len(load_prompts(settings.safety.prompts).categories),
    "words": len(load_words().words),
    "pictures": len(Pictures().names()),
    "pairs": len(Plan().group("matched")),
}))
"""


class Wheel(NamedTuple):
    unpacked: Path
    names: set[str]
    committed: set[str]
    """The packages' files that git does not ignore."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools leaves build/ where it builds, and takes along what is in it.
    files = copy_checkout(folder / "checkout")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "-w", str(folder), "."],
        cwd=folder / "checkout",
        check=True,
    )
    [built] = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
        names = set(archive.namelist())
    committed = {file.as_posix() for file in files if file.parts[0] in PACKAGES}
    return Wheel(folder / "unpacked", names, committed)


def test_every_file_of_the_packages_is_in_it_and_nothing_else(wheel: Wheel) -> None:
    held = {name for name in wheel.names if ".dist-info/" not in name}
    assert held == wheel.committed


@pytest.mark.parametrize(
    "pattern",
    [
        "laion_assets/py.typed",
        "laion_assets/deployments/sample.toml",
        "laion_assets/clip/thresholds.json",
        "laion_assets/clip/model_configs/laion-assets-tiny.json",
        "laion_assets/clip/weights/*.safetensors",
        "laion_assets/generation/weights/laion-assets-tiny-vq/*.safetensors",
        "laion_assets/generation/weights/laion-assets-tiny-vq/config.json",
        "laion_assets/safety/prompts/sample.json",
        "laion_assets/safety/prompts/laion400m.json",
        "laion_assets/safety/words/minors.txt",
        "laion_assets/sample_crawl/data/images.zip",
        "laion_assets/sample_crawl/data/plan.json",
        "laion_assets/stats/templates/report.html",
        "laion_assets/stats/templates/dataset_card.md",
    ],
)
def test_a_data_file_is_in_it(wheel: Wheel, pattern: str) -> None:
    found = list(wheel.unpacked.glob(pattern))
    assert found
    assert all(file.stat().st_size for file in found if file.name != "py.typed")


def test_it_brings_the_command_and_the_licence(wheel: Wheel) -> None:
    [entry_points] = wheel.unpacked.glob("*.dist-info/entry_points.txt")
    assert "laion-assets = laion_assets.cli:main" in entry_points.read_text()
    assert list(wheel.unpacked.glob("*.dist-info/licenses/LICENSE"))


def test_it_works_without_the_checkout(wheel: Wheel, tmp_path: Path) -> None:
    unpacked = wheel.unpacked
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["files"] == [str(unpacked / name / "__init__.py") for name in PACKAGES]
    assert Path(answer["config"]) == unpacked / "laion_assets/deployments/sample.toml"
    assert Path(answer["weights"]).parent == unpacked / "laion_assets/clip/weights"
    assert Path(answer["weights"]).is_file()
    assert answer["assets"] >= 11
    assert 0 < answer["threshold"] < 1
    assert answer["prompts"] >= 20
    assert min(answer["words"], answer["pictures"], answer["pairs"]) > 0
