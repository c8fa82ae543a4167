"""A manifest is read whole, or refused by its file's name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from laion_assets.funnel import StageCounts
from laion_assets.lake.partition import DamagedManifestError, Manifest

WHOLE: dict[str, Any] = {
    "asset": "pair_parquet",
    "crawl": "CC-MAIN-2000-05",
    "segment": "00",
    "run_id": "1",
    "code_version": "2-ab",
    "fingerprint": "0123",
    "data_version": "4567",
    "started": "2026-01-01T00:00:00+00:00",
    "seconds": 1.5,
    "bytes": 10,
    "files": [{"name": "a.parquet", "bytes": 10, "sha256": "00", "rows": 3}],
    "counts": [StageCounts("pairs", 3, 2, {"no_alt": 1}, {"no_alt": ["x"]}).to_json()],
    "metadata": {"a": [1]},
}


def read(folder: Path, text: str) -> Manifest:
    (folder / "_manifest.json").write_text(text)
    return Manifest.read(folder)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read(tmp_path, json.dumps(WHOLE))
    assert found.to_json() == WHOLE | {"seal": ""}
    sealed = found.sealed()
    assert sealed.seal
    assert read(tmp_path, json.dumps(sealed.to_json())).is_whole


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"files": [{"name": "a"}]}, "a file without bytes"),
        ({"files": None}, "files: "),
        ({"bytes": "many"}, "bytes: "),
        ({"seconds": float("inf")}, "seconds: "),
        ({"counts": [1]}, "it is no manifest"),
        ({"counts": [{"stage": "pairs"}]}, "it is no manifest"),
        ({"counts": [WHOLE["counts"][0] | {"kept": "x"}]}, "kept: "),
        ({"counts": [WHOLE["counts"][0] | {"stage": "cooking"}]}, "unknown stage"),
        ({"more": 1}, "more: "),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: dict[str, Any], why: str) -> None:
    named = re.escape(f"{tmp_path / '_manifest.json'} is damaged: ")
    with pytest.raises(DamagedManifestError, match=f"{named}.*{why}"):
        read(tmp_path, json.dumps(WHOLE | damage))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_what_is_no_manifest_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(DamagedManifestError, match=re.escape("_manifest.json is damaged: ")):
        read(tmp_path, text)
