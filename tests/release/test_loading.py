"""Others' tools load a release: mlcroissant, and those that docs/loading.md shows."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from laion_assets import schemas

PAGE = (Path(__file__).parents[2] / "docs" / "loading.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_run(made: Path, tmp_path: Path) -> None:
    """The examples run one after another in one process, without a network."""
    assert len(EXAMPLES) == 8
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(EXAMPLES)],
        cwd=made,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def mlcroissant() -> ModuleType:
    """The library, imported so that it leaves pytest's standard error alone.

    Its logger, absl's, keeps the one of its import and closes it with the log's handlers.
    """
    module = importlib.import_module("mlcroissant")
    from absl import logging

    logging.get_absl_handler().python_handler.stream = sys.__stderr__
    return module


def test_mlcroissant_has_no_complaints_and_reads_every_sample(
    mlcroissant: ModuleType, made: Path
) -> None:
    dataset = mlcroissant.Dataset(jsonld=made / "release" / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert not issues.warnings
    records = list(dataset.records("samples"))
    assert len(records) == 72
    assert {name.removeprefix("samples/") for name in records[0]} == set(schemas.SUBSET.names)
    by_id = {record["samples/SAMPLE_ID"]: record for record in records}
    assert len(by_id) == 72


def test_croissant_names_every_file_with_its_checksum(made: Path) -> None:
    described = json.loads((made / "release" / "croissant.json").read_text())
    manifest = json.loads((made / "release" / "manifest.json").read_text())
    files = {x["@id"]: x["sha256"] for x in described["distribution"] if "sha256" in x}
    assert files == {
        item["name"]: item["sha256"]
        for item in manifest["files"]
        if item["name"] not in ("README.md", "croissant.json")
    }


def test_a_broken_croissant_is_noticed(mlcroissant: ModuleType, made: Path, tmp_path: Path) -> None:
    """The check above can fail."""
    described = json.loads((made / "release" / "croissant.json").read_text())
    described["recordSet"][0]["field"][0]["source"]["fileSet"]["@id"] = "nowhere"
    (tmp_path / "croissant.json").write_text(json.dumps(described))
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(jsonld=tmp_path / "croissant.json")
